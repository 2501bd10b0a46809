//! What the program inherits, and that it is nothing else.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;

use serde_json::json;

use crate::support::{Launch, memfd, pipe, sh};

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
fn a_thousand_descriptors_of_the_caller_do_not_leak() {
    let file = fs::File::open("/dev/null").unwrap();
    let mut launch = Launch::new(&sh("ls /proc/$$/fd; true", json!({})));
    for to in 20..520 {
        launch = launch.fd(to, file.try_clone().unwrap().into());
    }

    assert_eq!(launch.run().stdout, "0\n1\n2\n");
}
