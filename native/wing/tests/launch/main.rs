//! `wing launch` by what a launched program sees of itself in `/proc`, and by what a refused one is told.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: what is not there ends the test"
)]

mod support;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use support::{Launch, is_root, memfd, pipe, sh};

const NOBODY: u32 = 65534;

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
fn only_the_listed_descriptors_are_there() {
    let dev_null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let run = Launch::new(&sh(
        "ls /proc/$$/fd; true",
        json!({"fds": [[7, 4], [7, 200]], "report_fd": 8}),
    ))
    .fd(5, dev_null())
    .fd(6, dev_null())
    .fd(7, dev_null())
    .fd(8, pipe().1)
    .fd(250, dev_null())
    .run();

    assert_eq!(run.stderr, "");
    assert_eq!(run.stdout, "0\n1\n2\n200\n4\n");
}

#[test]
fn descriptors_may_swap_places_rotate_and_take_the_place_of_the_launchers_own() {
    let named = |text: &str| memfd(text.as_bytes());
    let (mut report, report_end) = pipe();
    let run = Launch::new(&sh(
        "cat <&3; cat <&5; cat <&6; cat <&7; cat <&8",
        json!({"fds": [[5, 6], [6, 7], [7, 5], [9, 8], [10, 3]], "report_fd": 8}),
    ))
    .fd(5, named("five"))
    .fd(6, named("six"))
    .fd(7, named("seven"))
    .fd(8, report_end)
    .fd(9, named("nine"))
    .fd(10, named("ten"))
    .run();

    let mut told = String::new();
    report.read_to_string(&mut told).unwrap();
    assert_eq!(run.stdout, "tensevenfivesixnine");
    assert_eq!(told, format!("{{\"pid\":{}}}\n", run.pid));
}

#[test]
fn a_program_may_be_a_descriptor_that_it_does_not_inherit() {
    let mut copy = fs::File::from(memfd(&fs::read("/usr/bin/env").unwrap()));
    copy.seek(SeekFrom::Start(0)).unwrap();
    let run = Launch::new(&json!({
        "argv": ["env", "sh", "-c", "ls /proc/$$/fd; true"],
        "exe": {"fd": 4}, "env": {"PATH": "/usr/bin:/bin"}, "fds": [[5, 4]]
    }))
    .fd(4, copy.into())
    .fd(5, fs::File::open("/dev/null").unwrap().into())
    .run();

    assert_eq!(
        (run.stdout.as_str(), run.stderr.as_str()),
        ("0\n1\n2\n4\n", "")
    );
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

#[test]
fn in_a_pid_namespace_the_program_is_a_child_of_the_caller_under_the_reported_pid() {
    if !is_root() {
        return support::skip("needs root");
    }
    let (mut report, end) = pipe();
    let mut spec = sh(
        "echo $$ $(sed -n 's/^NSpid://p' /proc/self/status | wc -w); cut -d' ' -f6 /proc/self/stat; cat <&4",
        json!({"namespaces": ["pid", "mount"], "report_fd": 5, "setsid": true, "fds": [[6, 4]], "uid": NOBODY, "gid": NOBODY}),
    );
    spec["env"] = json!({"PATH": "/usr/bin:/bin"});
    let (gate, gate_writer) = pipe();
    let running = Launch::new(&spec).fd(5, end).fd(6, gate.into()).spawn();

    let mut line = String::new();
    report.read_to_string(&mut line).unwrap();
    let pid = serde_json::from_str::<Value>(&line).unwrap()["pid"]
        .as_u64()
        .unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(1)
        .unwrap()
        .to_owned();
    assert_eq!(parent, std::process::id().to_string());
    assert_ne!(pid, u64::from(running.pid()));
    fs::File::from(gate_writer).write_all(b"done\n").unwrap();

    let launcher = running.finish();
    assert_eq!(launcher.code, Some(0));
    assert!(launcher.stdout.starts_with("1 "), "{}", launcher.stdout);
    assert!(launcher.stdout.ends_with("done\n"));
    assert_eq!(support::reap(pid), 0);
}

#[test]
fn a_failure_inside_a_pid_namespace_is_reported_too() {
    if !is_root() {
        return support::skip("needs root");
    }
    let (mut report, end) = pipe();
    let run = Launch::new(
        &json!({"argv": ["x"], "exe": "/proc/absent", "namespaces": ["pid"], "report_fd": 5}),
    )
    .fd(5, end)
    .run();

    let mut told = String::new();
    report.read_to_string(&mut told).unwrap();
    let (pid, error) = told.split_once('\n').unwrap();
    assert_eq!(run.code, Some(0));
    assert_eq!(
        serde_json::from_str::<Value>(error).unwrap()["code"],
        "exec_missing"
    );
    assert_eq!(
        support::reap(
            serde_json::from_str::<Value>(pid).unwrap()["pid"]
                .as_u64()
                .unwrap()
        ),
        125
    );
}

#[test]
fn a_failure_is_told_to_stderr_and_to_the_report() {
    let (mut report, end) = pipe();
    let run = Launch::new(&json!({"argv": ["x"], "exe": "/proc/absent", "report_fd": 5}))
        .fd(5, end)
        .run();

    let mut told = String::new();
    report.read_to_string(&mut told).unwrap();
    assert_eq!(run.code, Some(125));
    assert_eq!(told, format!("{{\"pid\":{}}}\n{}", run.pid, run.stderr));
    let error: Value = serde_json::from_str(&run.stderr).unwrap();
    assert_eq!(error["message"], "cannot execute /proc/absent");
    assert_eq!(error["chain"][0], "No such file or directory (os error 2)");
}

#[test]
fn a_refused_specification_is_reported_too() {
    for fields in [
        json!({"umask": 4096}),
        json!({"umask": "0"}),
        json!({"unknown": 1}),
    ] {
        let (mut report, end) = pipe();
        let mut spec = json!({"argv": ["true"], "exe": "/bin/true", "report_fd": 5});
        spec.as_object_mut()
            .unwrap()
            .append(&mut fields.as_object().unwrap().clone());
        let run = Launch::new(&spec).fd(5, end).run();

        let mut told = String::new();
        report.read_to_string(&mut told).unwrap();
        assert_eq!(run.error_code(), "spec_invalid");
        assert_eq!(told, run.stderr);
    }
}

#[test]
fn a_low_limit_of_open_files_is_enough_or_is_reported() {
    for (files_max, enough) in [(40, true), (19, false)] {
        let (mut report, end) = pipe();
        let spec = sh(
            "cat /proc/$$/fd/15",
            json!({"fds": [[6, 15], [6, 16]], "report_fd": 5}),
        );
        let run = Launch::new(&spec)
            .fd(5, end)
            .fd(6, memfd(b"content"))
            .files_max(files_max)
            .run();

        let mut told = String::new();
        report.read_to_string(&mut told).unwrap();
        if enough {
            assert_eq!(
                (run.stdout.as_str(), told),
                ("content", format!("{{\"pid\":{}}}\n", run.pid))
            );
        } else {
            assert_eq!(run.error_code(), "fd_failed");
            assert_eq!(told, run.stderr);
        }
    }
}

#[test]
fn a_report_whose_reader_went_away_stops_nothing() {
    let (report, end) = pipe();
    drop(report);

    assert_eq!(
        Launch::new(&sh("echo hi", json!({"report_fd": 5})))
            .fd(5, end)
            .run()
            .stdout,
        "hi\n"
    );
}

#[test]
fn bad_specifications_are_refused_with_a_code() {
    let plain = || json!({"argv": ["true"], "exe": "/bin/true"});
    let with = |field: &str, value: Value| {
        let mut spec = plain();
        spec[field] = value;
        spec.to_string()
    };
    let folder = support::Folder::make();
    let script = folder.file("not-executable", b"#!/bin/sh\n", 0o644);
    let table: &[(&str, String, &str)] = &[
        ("nothing", String::new(), "spec_invalid"),
        ("not JSON", "}".to_owned(), "spec_invalid"),
        ("not an object", "[]".to_owned(), "spec_invalid"),
        (
            "not UTF-8",
            "{\"argv\": [\"\u{fffd}".to_owned(),
            "spec_invalid",
        ),
        (
            "something after it",
            plain().to_string() + "{}",
            "spec_invalid",
        ),
        ("deep nesting", "[".repeat(100_000), "spec_invalid"),
        (
            "a field twice",
            r#"{"argv":["a"],"argv":["b"],"exe":"/bin/true"}"#.to_owned(),
            "spec_invalid",
        ),
        (
            "an unknown field",
            with("rlimit", json!({})),
            "spec_invalid",
        ),
        (
            "an unknown limit",
            with("rlimits", json!({"files": [1, 1]})),
            "spec_invalid",
        ),
        (
            "an unknown namespace",
            with("namespaces", json!(["time"])),
            "spec_invalid",
        ),
        (
            "an unknown capability policy",
            with("capabilities", json!("all")),
            "spec_invalid",
        ),
        (
            "no program",
            json!({"argv": ["a"]}).to_string(),
            "spec_invalid",
        ),
        (
            "an unknown field beside the descriptor",
            with("exe", json!({"fd": 4, "path": "/bin/true"})),
            "spec_invalid",
        ),
        (
            "no argv",
            json!({"exe": "/bin/true"}).to_string(),
            "spec_invalid",
        ),
        ("empty argv", with("argv", json!([])), "spec_invalid"),
        ("NUL in argv", with("argv", json!(["a\0b"])), "spec_invalid"),
        (
            "NUL in the environment",
            with("env", json!({"A": "\0"})),
            "spec_invalid",
        ),
        (
            "a name with =",
            with("env", json!({"A=B": "c"})),
            "spec_invalid",
        ),
        (
            "an empty name",
            with("env", json!({"": "c"})),
            "spec_invalid",
        ),
        (
            "a relative program",
            with("exe", json!("bin/true")),
            "spec_invalid",
        ),
        (
            "a relative folder",
            with("cwd", json!("tmp")),
            "spec_invalid",
        ),
        (
            "NUL in the folder",
            with("cwd", json!("/\0")),
            "spec_invalid",
        ),
        (
            "a relative cgroup",
            with("cgroups", json!(["x"])),
            "spec_invalid",
        ),
        (
            "a negative limit",
            with("rlimits", json!({"core": [-1, 0]})),
            "spec_invalid",
        ),
        (
            "soft above hard",
            with("rlimits", json!({"core": [2, 1]})),
            "spec_invalid",
        ),
        (
            "unlimited above hard",
            with("rlimits", json!({"core": [null, 1]})),
            "spec_invalid",
        ),
        (
            "a mask of five digits",
            with("umask", json!(0o1777)),
            "spec_invalid",
        ),
        (
            "an OOM score out of range",
            with("oom_score_adj", json!(1001)),
            "spec_invalid",
        ),
        ("a uid without a gid", with("uid", json!(1)), "spec_invalid"),
        (
            "groups without a uid",
            with("groups", json!([])),
            "spec_invalid",
        ),
        (
            "the uid that means none",
            json!({"argv": ["a"], "exe": "/bin/true", "uid": u32::MAX, "gid": 1}).to_string(),
            "spec_invalid",
        ),
        (
            "a uid beyond 32 bits",
            json!({"argv": ["a"], "exe": "/bin/true", "uid": 1_u64 << 32, "gid": 1}).to_string(),
            "spec_invalid",
        ),
        (
            "a target twice",
            with("fds", json!([[0, 4], [1, 4]])),
            "spec_invalid",
        ),
        (
            "a target among stdio",
            with("fds", json!([[0, 2]])),
            "spec_invalid",
        ),
        (
            "a target too high",
            with("fds", json!([[0, 256]])),
            "spec_invalid",
        ),
        (
            "a negative target",
            with("fds", json!([[0, -1]])),
            "spec_invalid",
        ),
        (
            "a negative source",
            with("fds", json!([[-1, 4]])),
            "spec_invalid",
        ),
        (
            "the specification itself",
            with("fds", json!([[3, 4]])),
            "spec_invalid",
        ),
        (
            "too many descriptors",
            with("fds", (0..65).map(|n| json!([0, 10 + n])).collect()),
            "spec_invalid",
        ),
        (
            "too many cgroups",
            with("cgroups", (0..33).map(|n| json!(format!("/{n}"))).collect()),
            "spec_invalid",
        ),
        (
            "stderr as the report",
            with("report_fd", json!(2)),
            "spec_invalid",
        ),
        (
            "a pid namespace without a report",
            with("namespaces", json!(["pid"])),
            "spec_invalid",
        ),
        (
            "a descriptor that is not open",
            with("fds", json!([[77, 4]])),
            "fd_missing",
        ),
        (
            "a report that is not open",
            with("report_fd", json!(77)),
            "fd_missing",
        ),
        (
            "a program that is not open",
            with("exe", json!({"fd": 77})),
            "fd_missing",
        ),
        (
            "no such program",
            with("exe", json!("/proc/absent/program")),
            "exec_missing",
        ),
        (
            "a program behind a file",
            with("exe", json!("/bin/true/x")),
            "exec_missing",
        ),
        (
            "a folder as the program",
            with("exe", json!("/tmp")),
            "exec_denied",
        ),
        (
            "a program without its x",
            with("exe", json!(script)),
            "exec_denied",
        ),
        (
            "no such folder",
            with("cwd", json!("/proc/absent")),
            "cwd_missing",
        ),
        (
            "a file as the folder",
            with("cwd", json!("/etc/passwd")),
            "cwd_missing",
        ),
        (
            "no such cgroup",
            with("cgroups", json!(["/sys/fs/cgroup/absent"])),
            "cgroup_missing",
        ),
    ];
    for (name, spec, code) in table {
        let run = Launch::raw(spec.as_bytes()).run();
        assert_eq!(
            (run.code, run.error_code().as_str()),
            (Some(125), *code),
            "{name}: {}",
            run.stderr
        );
        assert_eq!(run.stderr.lines().count(), 1, "{name}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{name}");
    }
}

#[test]
fn what_is_not_utf8_is_refused() {
    assert_eq!(
        Launch::raw(b"{\"argv\": [\"\xff\"]}").run().error_code(),
        "spec_invalid"
    );
}

#[test]
fn a_specification_may_have_a_mebibyte_and_no_more() {
    let padded = |bytes: usize| {
        let spec = json!({"argv": ["true"], "exe": "/bin/true"}).to_string();
        Launch::raw(format!("{spec}{}", " ".repeat(bytes - spec.len())).as_bytes()).run()
    };

    assert_eq!(padded(1024 * 1024).code, Some(0));
    assert_eq!(padded(1024 * 1024 + 1).error_code(), "spec_too_large");
}

#[test]
fn without_descriptor_3_there_is_no_launch() {
    assert_eq!(Launch::without_spec().run().error_code(), "spec_missing");
}

#[test]
fn an_argument_is_refused() {
    assert_eq!(
        Launch::new(&json!({"argv": ["a"], "exe": "/bin/true"}))
            .argument("--help")
            .run()
            .error_code(),
        "usage"
    );
}

#[test]
fn nothing_is_written_into_a_folder_that_only_looks_like_a_cgroup() {
    let folder = support::Folder::make();
    let procs = folder.file("cgroup.procs", b"untouched", 0o644);
    let run =
        Launch::new(&json!({"argv": ["a"], "exe": "/bin/true", "cgroups": [folder.path()]})).run();

    assert_eq!(run.error_code(), "cgroup_failed");
    assert_eq!(fs::read(procs).unwrap(), b"untouched");
}

#[test]
fn an_ordinary_user_is_told_which_field_needs_root() {
    if !is_root() {
        return support::skip("starts as root to become an ordinary user");
    }
    let pids = support::cgroup_roots()
        .into_iter()
        .map(|root| support::Cgroup::make(&root))
        .next();
    let group = pids
        .as_ref()
        .map_or("/sys/fs/cgroup", |group| group.path.as_str());
    let table = [
        (json!({"uid": 1, "gid": 1}), "identity_denied"),
        (
            json!({"uid": NOBODY, "gid": NOBODY, "groups": [0]}),
            "identity_denied",
        ),
        (json!({"oom_score_adj": -500}), "oom_score_denied"),
        (
            json!({"rlimits": {"core": [0, 0], "nofile": [1024, null]}}),
            "rlimit_denied",
        ),
        (json!({"namespaces": ["net"]}), "namespace_denied"),
        (json!({"no_new_privs": false}), "capabilities_denied"),
        (json!({"cgroups": [group]}), "cgroup_denied"),
        (json!({"exe": "/root/program"}), "exec_denied"),
    ];
    for (fields, code) in table {
        let run = Launch::new(&sh("true", fields.clone())).uid(NOBODY).run();
        assert_eq!(
            (run.code, run.error_code().as_str()),
            (Some(125), code),
            "{fields}: {}",
            run.stderr
        );
    }
}

#[test]
fn an_ordinary_user_launches_with_all_that_needs_no_root() {
    if !is_root() {
        return support::skip("starts as root to become an ordinary user");
    }
    let run = Launch::new(&sh(
        "id -u; ulimit -n; umask",
        json!({"umask": 0o077, "setsid": true, "rlimits": {"nofile": [99, 99]}, "oom_score_adj": 500, "uid": NOBODY, "gid": NOBODY}),
    ))
    .uid(NOBODY)
    .run();

    assert_eq!(
        (run.stdout.as_str(), run.stderr.as_str()),
        ("65534\n99\n0077\n", "")
    );
}

#[test]
fn a_thousand_descriptors_of_the_caller_do_not_leak() {
    let file = fs::File::open("/dev/null").unwrap();
    let mut launch = Launch::new(&sh("ls /proc/$$/fd; true", json!({})));
    for to in 20..520 {
        launch = launch.fd(to, file.try_clone().unwrap().into());
    }

    assert_eq!(launch.run().stdout, "0\n1\n2\n");
}
