//! A packet socket: the switch's end of one link. Works in any network namespace whose owner we
//! are, with or without root, and needs no device file.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    libc,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SetSockOpt, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
        socket, sockopt,
    },
};

/// Large enough for any frame, also one the kernel has not cut to the link's MTU.
pub(crate) const MAX_FRAME: usize = crate::switch::OFFLOAD_HEADER + 14 + 4 + 65_536;
/// What may wait in the kernel for the switch, per link.
const RECEIVE_BUFFER: usize = 4 << 20;

/// All frames of one interface, each with its offload header in front (see `OFFLOAD_HEADER`).
pub(crate) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Binds to an interface of the calling thread's network namespace. Do this while the
    /// interface is down: before it is bound, the socket hears all interfaces.
    pub(crate) fn bind(interface: &str) -> nix::Result<Self> {
        let address = link_address(interface)?;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
        setsockopt(&socket, OffloadHeaders, &true)?;
        // Beyond the system's limit where we may, up to it where not.
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER))?;
        bind(socket.as_raw_fd(), &address)?;
        Ok(Self(socket))
    }

    /// Waits for the next frame the host sent; returns its length.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
                // Told once when the interface was down, as it was when the socket was bound.
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                received => return received,
            }
        }
    }

    /// Sends a frame to the host.
    pub(crate) fn send(&self, frame: &[u8]) -> nix::Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).map(drop)
    }
}

fn link_address(interface: &str) -> nix::Result<LinkAddr> {
    getifaddrs()?
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .ok_or(Errno::ENODEV)
}

/// `PACKET_VNET_HDR` of packet(7), which nix lacks.
#[derive(Clone, Copy)]
struct OffloadHeaders;

impl SetSockOpt for OffloadHeaders {
    type Val = bool;

    #[allow(unsafe_code)]
    fn set<F: AsFd>(&self, fd: &F, value: &bool) -> nix::Result<()> {
        /// From `linux/if_packet.h`; not in libc.
        const PACKET_VNET_HDR: libc::c_int = 15;
        let value = libc::c_int::from(*value);
        // SAFETY: the descriptor is open as long as `fd` lives, and the option's value is the
        // `c_int` behind the pointer, which the call only reads, with its true length.
        let result = unsafe {
            libc::setsockopt(
                fd.as_fd().as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop)
    }
}
