//! Boots a real guest and speaks with it. Thin on purpose: the whole product is tested on guests elsewhere; this proves that
//! kestrel alone keeps its side of the protocol.
//!
//! Needs, by environment (else every test says what is missing and passes over):
//! `AERIE_TEST_KERNEL` a boot image, `AERIE_TEST_MODULES` its `lib/modules/VERSION` folder, `AERIE_TEST_KESTREL` the static
//! binary, `AERIE_TEST_VSOCK` a vhost-user vsock backend (`vhost-device-vsock`), and `qemu-system-x86_64`, `mkfs.erofs`,
//! `mke2fs`, `cpio`, `xz`, `busybox` (static) on the machine.

mod bed;

use aerie_protocol::message::{EventKind, Exec};

use bed::{Bed, Setup};

#[test]
fn a_guest_boots_runs_a_command_and_powers_off() {
    let Some(mut bed) = Bed::boot(Setup::default()) else {
        return;
    };

    let ready = bed.event();
    assert!(matches!(ready.kind, EventKind::Ready { .. }), "{ready:?}");
    eprintln!("{ready:?}");

    let done = bed.exec(&Exec {
        argv: ["sh", "-c", "echo out; echo err >&2; hostname; exit 7"]
            .map(str::to_owned)
            .to_vec(),
        ..bed::exec_default()
    });
    assert_eq!(done.stdout, b"out\nguest\n");
    assert_eq!(done.stderr, b"err\n");
    assert_eq!(done.exit.code, 7);

    let absent = bed.exec(&Exec {
        argv: vec!["no-such-program".to_owned()],
        ..bed::exec_default()
    });
    assert_eq!(absent.exit.code, 127);

    eprintln!("{}", bed.shell("grep -E 'VmRSS|RssAnon|RssFile|RssShmem|Threads' /proc/1/status; cat /proc/mounts; df; ls -la /"));
    bed.stop(1000);
    bed.wait_off();
}
