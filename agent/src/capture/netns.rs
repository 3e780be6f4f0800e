//! Work inside a pod's network namespace: one synchronous call that nothing can interleave, never across an `.await`.

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tracing::warn;

use super::syscall::netns_cookie;

/// The namespace that the calling thread is in.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A network namespace, held open, and the way back home.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    file: Arc<File>,
    home: Arc<File>,
    cookie: u64,
    inode: u64,
}

impl Namespace {
    /// Opens the namespace in this file and reads its cookie.
    pub(super) fn open(path: &Path, home: &Arc<File>) -> io::Result<Self> {
        Self::of(File::open(path)?, home)
    }

    /// Makes one that nobody else has; it lasts as long as this, and what is in it.
    pub(super) fn make(home: &Arc<File>) -> io::Result<Self> {
        // The thread has nothing else to do, and so need not come home.
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(CURRENT)
        });
        let file = made.join().map_err(|_| io::Error::other("the thread that makes a namespace has died"))??;
        Self::of(file, home)
    }

    fn of(file: File, home: &Arc<File>) -> io::Result<Self> {
        let file = Arc::new(file);
        let inode = file.metadata()?.ino();
        let mut namespace = Self { file, home: Arc::clone(home), cookie: 0, inode };
        namespace.cookie = namespace.inside(current_cookie)?;
        Ok(namespace)
    }

    /// Names this namespace and no later one.
    pub(super) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The inode, as link information tells it.
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// For attaching a program.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` with the calling thread inside the namespace, and comes back.
    pub(super) fn inside<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        /// Goes home also when `work` panics.
        struct Return<'a>(&'a File);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                if setns(self.0, CloneFlags::CLONE_NEWNET).is_err() {
                    // This thread would go on making sockets in somebody's pod.
                    std::process::abort();
                }
            }
        }
        setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
        let _return = Return(&self.home);
        work()
    }

    /// The first of these addresses that no socket in the namespace can have, if there is one.
    pub(super) fn absent_address(&self, addresses: &[IpAddr]) -> io::Result<Option<IpAddr>> {
        self.inside(|| {
            for address in addresses {
                match TcpListener::bind((*address, 0)) {
                    Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return Ok(Some(*address)),
                    bound => drop(bound?),
                }
            }
            Ok(None)
        })
    }

    /// Whether a socket was made in this namespace.
    pub(super) fn holds(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(netns_cookie(socket)? == self.cookie)
    }
}

/// The namespace that the calling thread is in.
pub(super) fn home() -> io::Result<Arc<File>> {
    File::open(CURRENT).map(Arc::new)
}

/// The cookie of the namespace that the calling thread is in.
pub(super) fn current_cookie() -> io::Result<u64> {
    let probe = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    netns_cookie(probe.as_fd())
}

/// The cookie of the node's own namespace, which can never be a pod's.
pub(super) fn node_cookie(path: &Path, home: &Arc<File>) -> Option<u64> {
    let opened = Namespace::open(path, home);
    // Without CAP_SYS_PTRACE; a pod's file would have to name that very namespace for it to matter.
    let told = opened.inspect_err(|error| {
        warn!(path = %path.display(), %error, "cannot open the node's network namespace: it is not told from a pod's");
    });
    told.ok().map(|node| node.cookie())
}
