//! The suite that every vsock device built on this crate passes, whatever carries its queues.
//!
//! A device is put behind a [`Rig`]; [`Guest`] is a driver with a small socket layer that lives in the rig's memory,
//! kicks only when the device asked for it and looks at its rings only when it was interrupted. While a case runs it
//! checks what must hold for every packet: addresses, credit, counters.
//!
//! ```ignore
//! aerie_vsock::conformance!(my_rig); // `fn my_rig(limits: Limits) -> impl Rig`
//! ```
//!
//! What fails, panics: this is test code, compiled only with the feature `conformance`.

pub mod cases;
mod guest;
mod host;
mod rig;
mod ring;

pub use guest::{Guest, Layout, Packet, Sock};
pub use host::{Host, ok, pattern, read_all, write_all};
pub use rig::{Bench, QUEUE_SIZE, QueuePlace, Rig, Scratch, Setup};

/// Makes a `#[test]` of every case for the rigs that `$make` makes.
#[macro_export]
macro_rules! conformance {
    ($make:expr) => {
        $crate::conformance!(@cases $make,
            bulk: a_mebibyte_from_the_host_arrives,
            bulk: a_mebibyte_from_the_guest_arrives,
            bulk: sixty_four_mebibytes_cross_both_ways_at_once,
            bulk: a_host_that_reads_slowly_holds_the_guest_back,
            bulk: a_guest_that_reads_slowly_holds_the_host_back,
            bulk: bytes_behind_the_connect_line_are_data,
            bulk: two_hundred_connections_carry_data_at_once,
            bulk: any_layout_of_descriptors_is_a_packet,
            ending: a_half_close_by_the_host_leaves_the_reply,
            ending: a_half_close_by_the_guest_leaves_the_reply,
            ending: a_guest_that_closes_hears_reset_while_the_host_still_reads,
            ending: a_host_that_closes_shuts_both_halves,
            ending: a_guest_that_never_answers_a_shutdown_is_reset,
            ending: a_guest_that_stops_receiving_ends_the_hosts_writes,
            ending: a_reset_by_the_guest_ends_the_hosts_stream,
            ending: ports_may_be_used_again_at_once,
            opening: a_cancelled_connect_is_taken_back,
            opening: a_port_nobody_listens_on_refuses_the_host,
            opening: a_port_nobody_listens_on_refuses_the_guest,
            opening: a_connect_that_is_never_answered_ends,
            opening: a_line_that_never_ends_ends,
            opening: a_half_close_with_the_connect_is_no_cancel,
            opening: a_full_backlog_is_waited_for,
            opening: beyond_its_limit_the_guest_is_refused_and_the_host_is_not,
            opening: beyond_its_limit_the_host_is_refused,
            restart: the_hosts_streams_end_when_the_guest_goes,
            restart: the_device_works_after_a_restart,
            restart: what_the_guest_said_last_arrives_after_it_is_gone,
            restart: a_connect_before_the_driver_waits_for_it,
            hostile: packets_for_nobody_are_answered_with_reset,
            hostile: packets_in_anothers_name_are_dropped,
            hostile: malformed_packets_cost_one_connection,
            hostile: unreadable_chains_go_back,
            hostile: data_beyond_the_credit_is_refused,
            hostile: credit_that_was_never_given_is_not_used,
            hostile: a_window_of_nothing_is_asked_about_once,
            hostile: a_flood_without_receive_buffers_stops_at_the_bound,
            hostile: held_bytes_are_bounded,
            hostile: receive_buffers_too_small_go_back_empty,
        );
    };
    (@cases $make:expr, $($module:ident : $case:ident),* $(,)?) => {
        $(#[test]
        fn $case() {
            $crate::conformance::cases::$module::$case(&mut |limits| $make(limits));
        })*
    };
}
