//! What `report_fd` says, and the pid namespace, in which nobody else says who the program is.

use std::fs;
use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::support::{self, Launch, NOBODY, is_root, memfd, pipe, sh};

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
