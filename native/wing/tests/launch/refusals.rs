//! What is refused, with which code, and that nothing has happened then.

use std::fs;

use serde_json::{Value, json};

use crate::support::{self, Launch, NOBODY, is_root, sh};

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
