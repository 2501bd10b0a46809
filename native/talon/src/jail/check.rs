//! `talon check`: what this host can give a machine, and what of the jail it can enforce.

use kvm_ioctls::{Cap, Kvm};
use serde_json::{Value, json};

use super::landlock;

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// The chosen word of a list like `always [madvise] never`.
fn chosen(text: &str) -> String {
    let word = text
        .split('[')
        .nth(1)
        .and_then(|rest| rest.split(']').next());
    word.unwrap_or(text).to_owned()
}

fn processor() -> Option<&'static str> {
    let text = read("/proc/cpuinfo")?;
    let flags = text.lines().find(|line| line.starts_with("flags"))?;
    ["svm", "vmx"]
        .into_iter()
        .find(|flag| flags.split_whitespace().any(|word| word == *flag))
}

fn kvm() -> Value {
    let virtualization = processor();
    match Kvm::new() {
        Err(error) => {
            json!({ "usable": false, "problem": format!("/dev/kvm: {error}"), "cpu": virtualization })
        }
        Ok(kvm) => {
            let missing: Vec<&str> = [
                (Cap::Irqchip, "irqchip"),
                (Cap::Ioeventfd, "ioeventfd"),
                (Cap::ReadonlyMem, "readonly_mem"),
                (Cap::SignalMsi, "signal_msi"),
                (Cap::ImmediateExit, "immediate_exit"),
                (Cap::TscDeadlineTimer, "tsc_deadline_timer"),
            ]
            .into_iter()
            .filter(|(capability, _)| !kvm.check_extension(*capability))
            .map(|(_, name)| name)
            .collect();
            json!({
                // The file alone proves nothing: a paravirtual KVM opens and then hangs an unmodified guest.
                "usable": virtualization.is_some() && missing.is_empty(),
                "cpu": virtualization,
                "api": kvm.get_api_version(),
                "vcpus_max": kvm.get_max_vcpus(),
                "missing": missing,
            })
        }
    }
}

/// Everything as JSON.
#[must_use]
pub fn report() -> Value {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let abi = landlock::abi();
    json!({
        "kvm": kvm(),
        "machine_generation": crate::layout::GENERATION,
        "state_format": crate::snapshot::codec::FORMAT,
        "jail": {
            "landlock_abi": abi,
            "landlock": {
                "files": abi >= 1,
                "truncate": abi >= 3,
                "tcp": abi >= 4,
                "device_ioctls": abi >= 5,
                "abstract_sockets_and_signals": abi >= 6,
                // Until ABI 9 connecting to a socket's path is closed by the empty root alone.
                "socket_paths": abi >= 9,
            },
            "seccomp_kill_process": actions.split_whitespace().any(|action| action == "kill_process"),
            "user_namespaces": read("/proc/sys/user/max_user_namespaces").is_some_and(|most| most != "0"),
        },
        "memory": {
            "transparent_hugepages": read("/sys/kernel/mm/transparent_hugepage/enabled").map(|text| chosen(&text)),
            "shmem_hugepages": read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").map(|text| chosen(&text)),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_is_found() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("advise"), "advise");
    }

    #[test]
    fn a_report_tells_the_parts_apart() {
        let report = report();

        assert!(report["kvm"]["usable"].is_boolean());
        assert!(report["jail"]["landlock_abi"].is_u64());
    }
}
