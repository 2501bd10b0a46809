//! The daemon's words, followed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::Instant,
};

use serde_json::Value;
use vmm_sys_util::epoll::EventSet;

use super::{
    context::Context,
    control::{Control, Left},
    dhcp::Dhcp,
    dns::Dns,
    message::{Head, Refusal, Said, Told},
    poll::{Kind, Poll, Token},
    ra::{self, Ra},
    relay::{Ports, Side},
    state::State,
};

#[derive(Debug)]
pub struct Helper {
    pub poll: Poll,
    pub control: Control,
    pub dhcp: Option<Dhcp>,
    pub dns: Dns,
    pub ra: Option<Ra>,
    pub ports: Ports,
    pub state: Option<State>,
    pub scratch: Vec<u8>,
}

/// Borrows all of the helper that a protocol needs, and leaves the protocols themselves.
macro_rules! context {
    ($helper:ident, $now:expr) => {
        &mut Context {
            poll: &$helper.poll,
            state: $helper.state.as_ref(),
            control: &mut $helper.control,
            now: $now,
            scratch: &mut $helper.scratch,
        }
    };
}

impl Helper {
    /// Whether to go on; it ends when its control socket was shut down.
    pub fn on_event(&mut self, token: Token, events: EventSet, now: Instant) -> bool {
        let Token { kind, number } = token;
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        match kind {
            // A non-blocking accept does not say that the listener was shut down.
            Kind::ControlListener if events.contains(EventSet::HANG_UP) => return false,
            Kind::ControlListener => match self.control.accept(&self.poll) {
                Ok(false) => {}
                // What an older controller was asked to commit nobody will.
                Ok(true) => self.dns.on_controller_gone(context!(self, now)),
                Err(_) => return false,
            },
            Kind::Controller => self.on_controller(number, events, now),
            Kind::Dhcp => {
                let resolver = self.resolver_v4();
                if let Some(dhcp) = &mut self.dhcp {
                    dhcp.on_event(self.state.as_ref(), resolver, &mut self.scratch);
                }
            }
            Kind::Ra => {
                let resolver = self.resolver_v6();
                if let Some(ra) = &mut self.ra {
                    ra.on_event(self.state.as_ref(), resolver, &mut self.scratch);
                }
            }
            Kind::DnsUdp => self.dns.on_udp(index, context!(self, now)),
            Kind::DnsTcp => self.dns.on_tcp(index, context!(self, now)),
            Kind::DnsClient => self.dns.on_client(number, events, context!(self, now)),
            Kind::DnsUpstream => self.dns.on_upstream(number, context!(self, now)),
            Kind::TcpListener => self.ports.on_tcp(number, context!(self, now)),
            Kind::UdpListener => self.ports.on_udp(number, context!(self, now)),
            Kind::RelayClient => {
                let context = context!(self, now);
                self.ports.on_pair(number, Side::Client, events, context);
            }
            Kind::RelayTarget => {
                let context = context!(self, now);
                self.ports.on_pair(number, Side::Target, events, context);
            }
            Kind::UdpFlow => self.ports.on_flow(number, context!(self, now)),
        }
        true
    }

    pub fn on_tick(&mut self, now: Instant) {
        self.dns.on_tick(context!(self, now));
        self.ports.on_tick(context!(self, now));
        let resolver = self.resolver_v6();
        if let Some(ra) = &mut self.ra {
            ra.on_tick(self.state.as_ref(), resolver, now);
        }
    }

    pub fn on_ready(&mut self, now: Instant) {
        self.ports.on_ready(context!(self, now));
    }

    fn resolver_v4(&self) -> Option<Ipv4Addr> {
        self.dns.addresses().find_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
    }

    fn resolver_v6(&self) -> Option<Ipv6Addr> {
        ra::resolver(self.dns.addresses())
    }

    fn on_controller(&mut self, number: u64, events: EventSet, now: Instant) {
        let left = self
            .control
            .on_event(number, events, &self.poll, &mut self.scratch);
        while let Some(frames) = self.control.frames() {
            match frames.next() {
                Ok(Some(json)) => {
                    let fd = frames.take_fd();
                    self.on_frame(&json, fd, now);
                }
                Ok(None) => break,
                Err(_) => self.control.drop_controller(),
            }
        }
        if left == Left::Gone || !self.control.is_connected() {
            self.dns.on_controller_gone(context!(self, now));
        }
    }

    fn on_frame(&mut self, json: &[u8], fd: Option<OwnedFd>, now: Instant) {
        let Ok(head) = serde_json::from_slice::<Head>(json) else {
            return self.control.drop_controller();
        };
        let said = serde_json::from_slice::<Said>(json)
            .map_err(|error| Refusal::new("message_invalid", error.to_string()));
        let seq = head.seq.clone();
        if let Err(refusal) = said.and_then(|said| self.follow(said, fd, seq, now)) {
            let told = Told::Error {
                of: &head.kind,
                id: head.id,
                generation: head.generation,
                seq: head.seq,
                code: refusal.code,
                message: refusal.message,
            };
            self.control.send(&told, &self.poll);
        }
    }

    fn follow(
        &mut self,
        said: Said,
        fd: Option<OwnedFd>,
        seq: Option<Value>,
        now: Instant,
    ) -> Result<(), Refusal> {
        match said {
            Said::State(whole) => {
                let state = State::new(*whole)?;
                self.dns.on_state_changed(self.state.as_ref(), &state);
                let generation = Some(state.generation);
                self.state = Some(state);
                if let Some(ra) = &mut self.ra {
                    ra.on_state_changed();
                }
                let told = Told::Applied { generation, seq };
                self.control.send(&told, &self.poll);
                return Ok(());
            }
            Said::LeasePut { lease } => {
                let mac = lease.mac.clone();
                let before = self.lease_addresses(&mac)?;
                self.known()?.put_lease(lease)?;
                let after = self.lease_addresses(&mac)?;
                self.dns.forget(before.into_iter().chain(after));
            }
            Said::LeaseRemove { mac } => {
                let before = self.lease_addresses(&mac)?;
                self.known()?.remove_lease(&mac)?;
                self.dns.forget(before.into_iter());
            }
            Said::NamePut(name) => self.known()?.put_name(name)?,
            Said::NameRemove { name } => self.known()?.remove_name(&name)?,
            Said::Upstreams { upstreams } => self.known()?.set_upstreams(upstreams)?,
            Said::Listen(listen) => {
                let id = listen.id.clone();
                self.ports.listen(listen, fd, &self.poll)?;
                self.control.send(&Told::Listening { id: &id }, &self.poll);
                return Ok(());
            }
            Said::Retarget { id, target } => {
                self.ports.retarget(&id, target)?;
                self.control.send(&Told::Retargeted { id: &id }, &self.poll);
                return Ok(());
            }
            Said::Unlisten { id } => {
                self.ports.unlisten(&id, &self.poll)?;
                self.control.send(&Told::Unlistened { id: &id }, &self.poll);
                return Ok(());
            }
            Said::Stats {} => {
                let told = Told::Stats {
                    seq,
                    generation: self.state.as_ref().map(|state| state.generation),
                    listeners: self.ports.stats(),
                    dns: self.dns.stats,
                    dhcp: self
                        .dhcp
                        .as_ref()
                        .map(|dhcp| dhcp.stats)
                        .unwrap_or_default(),
                    ra: self.ra.as_ref().map(|ra| ra.stats).unwrap_or_default(),
                };
                self.control.send(&told, &self.poll);
                return Ok(());
            }
            Said::Commit { id, ok } => {
                self.dns.on_commit(id, ok, context!(self, now));
                return Ok(());
            }
        }
        if seq.is_some() {
            let told = Told::Applied {
                generation: None,
                seq,
            };
            self.control.send(&told, &self.poll);
        }
        Ok(())
    }

    fn known(&mut self) -> Result<&mut State, Refusal> {
        self.state
            .as_mut()
            .ok_or_else(|| Refusal::new("state_invalid", "there is no state yet"))
    }

    fn lease_addresses(&mut self, mac: &str) -> Result<Vec<IpAddr>, Refusal> {
        self.known()?.addresses_of_mac(mac)
    }
}
