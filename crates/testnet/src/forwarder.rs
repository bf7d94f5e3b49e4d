//! The running switch: one thread a port that reads frames, one that sends those whose time has come.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use crate::{
    packet::{MAX_FRAME, PacketSocket},
    switch::{Link, LinkStats, Switch},
};

/// Forwards frames between its ports until the process ends.
pub(crate) struct Forwarder(Arc<Shared>);

struct Shared {
    switch: Mutex<Switch>,
    /// Told when a frame is due earlier than any before.
    earlier: Condvar,
    /// By port number.
    sockets: Vec<PacketSocket>,
}

impl Forwarder {
    /// Starts forwarding between `sockets`; a port's number is its index.
    pub(crate) fn start(sockets: Vec<PacketSocket>) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { switch: Mutex::new(Switch::new(sockets.len())), earlier: Condvar::new(), sockets });
        for port in 0..shared.sockets.len() {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("port {port}")).spawn(move || shared.read(port))?;
        }
        let timer = Arc::clone(&shared);
        thread::Builder::new().name("delay".to_owned()).spawn(move || timer.send_delayed())?;
        Ok(Self(shared))
    }

    /// Changes the quality of a port's link; `None` keeps what is.
    pub(crate) fn set_link(&self, port: usize, change: impl FnOnce(&mut Link), up: Option<bool>) {
        let mut switch = self.0.switch();
        change(switch.link_mut(port));
        if let Some(up) = up {
            switch.set_up(port, up);
        }
    }

    pub(crate) fn stats(&self, port: usize) -> LinkStats {
        self.0.switch().stats(port)
    }
}

impl Shared {
    fn switch(&self) -> MutexGuard<'_, Switch> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when the interface is gone, with its host.
    fn read(&self, port: usize) {
        let mut buffer = vec![0; MAX_FRAME];
        let mut rng = rand::rng();
        while let Ok(length) = self.sockets[port].receive(&mut buffer) {
            let frame = &buffer[..length];
            let mut switch = self.switch();
            let before = switch.next_due();
            let targets = switch.receive(port, frame, Instant::now(), &mut rng);
            if switch.next_due() != before {
                self.earlier.notify_one();
            }
            drop(switch);
            for target in targets {
                self.send(target, frame);
            }
        }
    }

    fn send_delayed(&self) {
        let mut switch = self.switch();
        loop {
            let now = Instant::now();
            if let Some((port, frame)) = switch.pop_due(now) {
                drop(switch);
                self.send(port, &frame);
                switch = self.switch();
                continue;
            }
            switch = match switch.next_due() {
                None => self.earlier.wait(switch).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let waited = self.earlier.wait_timeout(switch, due.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// A frame that cannot be sent (the host is gone, its queue is full) is lost, as on any network.
    fn send(&self, port: usize, frame: &[u8]) {
        let _ = self.sockets[port].send(frame);
    }
}
