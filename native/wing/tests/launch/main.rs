//! `wing launch` by what a launched program sees of itself in `/proc`, and by what a refused one is told.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: what is not there ends the test"
)]

mod descriptors;
mod refusals;
mod report;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use support::{Launch, NOBODY, is_root, sh};

fn status(field: &str, text: &str) -> String {
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{field}:")));
    line.and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim().to_owned())
        .unwrap()
}

#[test]
fn the_pid_of_the_launcher_is_the_pid_of_the_program() {
    let run = Launch::new(&sh(
        "echo $$ $0 $1",
        json!({"argv": ["sh", "-c", "echo $$ $0 $1", "a", "b"]}),
    ))
    .run();

    assert_eq!(run.stdout, format!("{} a b\n", run.pid));
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
}

#[test]
fn the_environment_is_the_listed_one_and_no_other() {
    let spec = json!({"argv": ["env"], "exe": "/usr/bin/env", "env": {"A": "1", "B": "x=y z"}});

    assert_eq!(Launch::new(&spec).run().stdout, "A=1\nB=x=y z\n");
}

#[test]
fn the_program_starts_in_its_folder_with_its_umask_and_in_its_session() {
    let run = Launch::new(&sh(
        "pwd; umask; cut -d' ' -f6 /proc/self/stat",
        json!({"cwd": "/usr", "umask": 0o027, "setsid": true}),
    ))
    .run();

    assert_eq!(run.stdout, format!("/usr\n0027\n{}\n", run.pid));
}

#[test]
fn a_folder_that_is_closed_to_the_program_is_entered_by_the_caller() {
    if !is_root() {
        eprintln!("skip: needs root, to launch as another user");
        return;
    }
    let closed = std::env::temp_dir().join(format!("wing-closed-{}", std::process::id()));
    let inside = closed.join("inside");
    fs::create_dir_all(&inside).unwrap();
    fs::write(inside.join("file"), "").unwrap();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let spec = |more: serde_json::Value| {
        let mut spec = sh(
            "test -e file && echo here",
            json!({"cwd": inside, "uid": NOBODY, "gid": NOBODY}),
        );
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec
    };

    let refused = Launch::new(&spec(json!({}))).run();
    let entered = Launch::new(&spec(json!({"cwd_by": "caller"}))).run();
    let in_namespaces = Launch::new(&spec(
        json!({"cwd_by": "caller", "namespaces": ["user", "mount"]}),
    ))
    .run();

    fs::remove_dir_all(&closed).unwrap();
    assert_eq!(refused.code, Some(125));
    assert!(refused.stderr.contains("cwd_denied"), "{}", refused.stderr);
    assert_eq!(entered.stdout, "here\n");
    assert_eq!(in_namespaces.stdout, "here\n");
}

#[test]
fn a_process_that_leads_a_session_already_may_ask_for_one() {
    let run = Launch::new(&sh(
        "cut -d' ' -f6 /proc/self/stat",
        json!({"setsid": true}),
    ))
    .leading_session()
    .run();

    assert_eq!(run.stdout, format!("{}\n", run.pid));
}

#[test]
fn limits_are_what_was_asked_for() {
    let run = Launch::new(
        &json!({"argv": ["cat", "/proc/self/limits"], "exe": "/bin/cat", "rlimits": {
            "nofile": [64, 128], "core": [0, 0], "fsize": [4096, 8192], "memlock": [65536, 65536],
            "nproc": [500, 600], "stack": [1_048_576, 1_048_576], "as": [1_073_741_824_u64, null]
        }}),
    )
    .run();

    let limit = |name: &str| {
        let line = run
            .stdout
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap();
        line[26..]
            .split_whitespace()
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(limit("Max open files"), "64 128");
    assert_eq!(limit("Max core file size"), "0 0");
    assert_eq!(limit("Max file size"), "4096 8192");
    assert_eq!(limit("Max locked memory"), "65536 65536");
    assert_eq!(limit("Max processes"), "500 600");
    assert_eq!(limit("Max stack size"), "1048576 1048576");
    assert_eq!(limit("Max address space"), "1073741824 unlimited");
}

#[test]
fn signals_are_at_their_defaults_and_none_is_blocked() {
    // The test's own threads ignore SIGPIPE (Rust's runtime does), and the harness blocks one more here.
    let run = Launch::new(&json!({"argv": ["cat", "/proc/self/status"], "exe": "/bin/cat"}))
        .blocking_signals()
        .run();

    for field in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(status(field, &run.stdout), "0000000000000000", "{field}");
    }
}

#[test]
fn no_new_privs_and_no_capability_are_the_default() {
    let run = Launch::new(&json!({"argv": ["cat", "/proc/self/status"], "exe": "/bin/cat"})).run();

    assert_eq!(status("NoNewPrivs", &run.stdout), "1");
    for field in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(field, &run.stdout), "0000000000000000", "{field}");
    }
    if is_root() {
        assert_eq!(status("CapBnd", &run.stdout), "0000000000000000");
    }
}

#[test]
fn capabilities_can_be_kept() {
    let own = status("CapBnd", &fs::read_to_string("/proc/self/status").unwrap());
    let run = Launch::new(&json!({
        "argv": ["cat", "/proc/self/status"], "exe": "/bin/cat", "capabilities": "keep", "no_new_privs": false
    }))
    .run();

    assert_eq!(status("CapBnd", &run.stdout), own);
    assert_eq!(status("NoNewPrivs", &run.stdout), "0");
}

#[test]
fn root_becomes_another_user_for_good() {
    if !is_root() {
        return support::skip("needs root");
    }
    let run = Launch::new(&json!({
        "argv": ["cat", "/proc/self/status"], "exe": "/bin/cat", "uid": 4711, "gid": 4712, "groups": [7, 9], "oom_score_adj": 200
    }))
    .run();

    assert_eq!(status("Uid", &run.stdout), "4711\t4711\t4711\t4711");
    assert_eq!(status("Gid", &run.stdout), "4712\t4712\t4712\t4712");
    assert_eq!(status("Groups", &run.stdout), "7 9");
    assert_eq!(status("CapBnd", &run.stdout), "0000000000000000");
}

#[test]
fn supplementary_groups_do_not_outlive_a_change_of_user() {
    if !is_root() {
        return support::skip("needs root");
    }
    let spec = json!({"argv": ["cat", "/proc/self/status"], "exe": "/bin/cat", "uid": NOBODY, "gid": NOBODY});

    assert_eq!(
        status(
            "Groups",
            &Launch::new(&spec).groups(&[1, 2, 3]).run().stdout
        ),
        ""
    );
}

#[test]
fn the_oom_score_is_set() {
    let run = Launch::new(&json!({"argv": ["cat", "/proc/self/oom_score_adj"], "exe": "/bin/cat", "oom_score_adj": 321})).run();

    assert_eq!(run.stdout, "321\n");
}

#[test]
fn every_cgroup_of_the_list_is_joined_before_the_user_changes() {
    if !is_root() {
        return support::skip("needs root");
    }
    let groups: Vec<_> = support::cgroup_roots()
        .into_iter()
        .map(|root| support::Cgroup::make(&root))
        .collect();
    if groups.is_empty() {
        return support::skip("no cgroup may be made here");
    }
    let paths: Vec<_> = groups.iter().map(|group| group.path.clone()).collect();
    let run = Launch::new(&json!({
        "argv": ["cat", "/proc/self/cgroup"], "exe": "/bin/cat", "cgroups": paths, "uid": NOBODY, "gid": NOBODY
    }))
    .run();

    assert_eq!(run.stderr, "");
    for group in &groups {
        let joined = run
            .stdout
            .lines()
            .any(|line| line.ends_with(&format!("/{}", group.name)));
        assert!(joined, "{} is not in {}", group.name, run.stdout);
    }
}

#[test]
fn namespaces_are_new_and_the_ids_stay() {
    if !is_root() {
        return support::skip("starts as root, and again as an ordinary user");
    }
    let own = |name: &str| {
        fs::read_link(format!("/proc/self/ns/{name}"))
            .unwrap()
            .display()
            .to_string()
    };
    let spec = sh(
        "for n in user mnt net ipc; do readlink /proc/self/ns/$n; done; id -u; id -g; cat /proc/self/setgroups; \
         tail -n +3 /proc/self/net/dev | wc -l; cat /proc/self/status",
        json!({"namespaces": ["user", "mount", "net", "ipc"], "uid": NOBODY, "gid": NOBODY}),
    );
    for launch in [Launch::new(&spec), Launch::new(&spec).uid(NOBODY)] {
        let run = launch.run();

        assert_eq!(run.stderr, "");
        let lines: Vec<_> = run.stdout.lines().collect();
        for (name, line) in ["user", "mnt", "net", "ipc"].iter().zip(&lines) {
            assert_ne!(own(name), **line);
        }
        // One interface: the loopback, which is down.
        assert_eq!(lines[4..8], ["65534", "65534", "deny", "1"]);
        for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(field, &run.stdout), "0000000000000000", "{field}");
        }
    }
}

#[test]
fn what_is_kept_in_a_user_namespace_passes_the_exec_and_is_worth_nothing_outside() {
    if !is_root() {
        return support::skip("starts as root, and again as an ordinary user");
    }
    let spec = sh(
        &format!(
            "cat /proc/self/status; mount -t tmpfs none /mnt && echo mounted; hostname other 2>/dev/null || echo refused; \
             nsenter --net=/proc/{}/ns/net true 2>/dev/null || echo kept out",
            std::process::id()
        ),
        json!({"namespaces": ["user", "mount"], "uid": NOBODY, "gid": NOBODY, "capabilities": "keep"}),
    );
    for launch in [Launch::new(&spec), Launch::new(&spec).uid(NOBODY)] {
        let run = launch.run();

        assert_ne!(status("CapEff", &run.stdout), "0000000000000000");
        for field in ["CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(
                status(field, &run.stdout),
                status("CapEff", &run.stdout),
                "{field}"
            );
        }
        assert!(
            run.stdout.ends_with("mounted\nrefused\nkept out\n"),
            "{} {}",
            run.stdout,
            run.stderr
        );
    }
}

#[test]
fn root_enters_namespaces_without_a_user_namespace() {
    if !is_root() {
        return support::skip("needs root");
    }
    let own = |name: &str| {
        fs::read_link(format!("/proc/self/ns/{name}"))
            .unwrap()
            .display()
            .to_string()
    };
    let run = Launch::new(&sh(
        "for n in user net; do readlink /proc/self/ns/$n; done; id -u",
        json!({"namespaces": ["mount", "net"], "uid": NOBODY, "gid": NOBODY}),
    ))
    .run();

    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(
        (lines[0], lines[2]),
        (own("user").as_str(), "65534"),
        "{}",
        run.stderr
    );
    assert_ne!(lines[1], own("net"));
}
