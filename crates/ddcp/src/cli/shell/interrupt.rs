//! Lets Ctrl-C stop a running statement instead of the process.

use std::io;
use std::thread::{self, JoinHandle};

use rusqlite::InterruptHandle;
use tokio::sync::oneshot;

/// While it lives, SIGINT interrupts what the connection is running. Afterwards SIGINT does
/// nothing: the runtime cannot give the signal back.
pub(super) struct InterruptOnSignal {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl InterruptOnSignal {
    /// Starts to listen.
    ///
    /// # Errors
    /// If the system refuses a thread or a signal handler.
    pub(super) fn start(handle: InterruptHandle) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let listen = async move {
            // One stream for all signals: none is missed between two of them.
            let mut signals = match signals() {
                Ok(signals) => signals,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            loop {
                tokio::select! {
                    _ = signals.recv() => handle.interrupt(),
                    _ = &mut stopped => return,
                }
            }
        };
        let thread = thread::Builder::new().name("interrupt".to_owned()).spawn(move || runtime.block_on(listen))?;
        is_ready.recv().map_err(io::Error::other)??;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for InterruptOnSignal {
    fn drop(&mut self) {
        // The thread may have ended already; either way it ends now.
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(unix)]
fn signals() -> io::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
}

#[cfg(windows)]
fn signals() -> io::Result<tokio::signal::windows::CtrlC> {
    tokio::signal::windows::ctrl_c()
}
