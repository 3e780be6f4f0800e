//! How many records are owed, in memory that outlives the agent: a file that is mapped, so that what a killed agent has
//! written is there for the next one, and a connection costs one addition.
//!
//! Each agent of an instance has an account of its own, since two run while one hands over; a lock on the account (which the
//! kernel lets go with the process) says whose agent lives. What a dead one's account still owes is lost.
//!
//! One agent writes at a time, which a second lock says, and who it is stands in the page. So whoever comes next knows that the
//! lines behind the last write's offset are those of the agent that died in it, and nobody else's.
#![expect(unsafe_code, reason = "the file's memory is mapped; nothing in it but atomic integers is ever touched")]

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use tracing::warn;

/// One that serves, and those that drain.
const ACCOUNTS: usize = 15;
/// The byte of the file whose lock an agent has while it writes; those before it are the accounts'.
const PEN: usize = ACCOUNTS;
/// How long the pen is waited for. Who has it for longer is hung, or its disk is.
const PEN_WAIT: Duration = Duration::from_secs(1);
/// A page.
const LENGTH: usize = 4096;

/// The file's bytes. A change is a new file name.
#[repr(C)]
struct Page {
    totals: Totals,
    accounts: [Account; ACCOUNTS],
}

/// Of all agents of the instance since the file was made.
#[repr(C, align(64))]
struct Totals {
    /// Records that their agent did not live to write.
    died: AtomicU64,
    /// Records that found no room in the queue, or that the disk did not take.
    unwritten: AtomicU64,
    /// Whose write is under way, or was when its agent died: the account's number and one; 0 = nobody's.
    writing: AtomicU64,
}

/// One agent's.
#[repr(C, align(64))]
struct Account {
    begun: AtomicU64,
    /// Records that were written, or given up.
    settled: AtomicU64,
    dropped: AtomicU64,
    /// The write that is under way, if `mark` is one more than `settled`: to which file, and from where.
    inode: AtomicU64,
    offset: AtomicU64,
    mark: AtomicU64,
}

/// For as long as it lives, no other agent of the instance writes.
pub(super) struct Pen<'a> {
    ledger: &'a Ledger,
}

/// This agent's account.
#[derive(Debug)]
pub(super) struct Ledger {
    page: NonNull<Page>,
    own: usize,
    /// Holds the account's lock.
    file: File,
}

// SAFETY: what is behind the pointer is mapped as long as this lives, and consists of atomic integers.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl Ledger {
    /// Opens the file, or makes it; takes an account; and settles those of agents that have died, of whose records the last
    /// may be in `records` already. Returns how many records they have lost as well.
    ///
    /// # Errors
    /// The system's, or that too many agents of this instance still drain.
    pub(super) fn open(path: &Path, records: &Path) -> io::Result<(Self, u64)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        if length < LENGTH as u64 {
            // Written, not only made longer: a page that the file system has no room for would be a signal, later.
            file.seek(SeekFrom::End(0))?;
            file.write_all(&vec![0; LENGTH - length as usize])?;
        }
        let whole = NonZeroUsize::new(LENGTH).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping of a whole page of a file that is as long; nothing else is at that address.
        let page = unsafe { mmap(None, whole, access, MapFlags::MAP_SHARED, file.as_fd(), 0)? }.cast();
        let mut ledger = Self { page, own: ACCOUNTS, file };
        // What a dead agent had just written is counted. A living one that has the pen may be in such a write itself.
        drop(ledger.pen(records));
        let mut lost = 0;
        for number in 0..ACCOUNTS {
            if !ledger.lock(number, libc::F_WRLCK)? {
                continue;
            }
            lost += ledger.settle(number);
            if ledger.own == ACCOUNTS {
                ledger.own = number;
            } else {
                ledger.lock(number, libc::F_UNLCK)?;
            }
        }
        if ledger.own == ACCOUNTS {
            return Err(io::Error::other("too many agents of this instance still drain: end one of them"));
        }
        Ok((ledger, lost))
    }

    /// A connection has begun: its record is owed.
    pub(super) fn begin(&self) {
        self.account(self.own).begun.fetch_add(1, Ordering::Relaxed);
    }

    /// A record that was owed is another connection's to write.
    pub(super) fn forgo(&self) {
        self.account(self.own).begun.fetch_sub(1, Ordering::Relaxed);
    }

    /// A record has found no room in the queue.
    pub(super) fn dropped(&self) {
        self.account(self.own).dropped.fetch_add(1, Ordering::Relaxed);
        self.page().totals.unwritten.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the pen, and puts right what an agent has left that died with it. None, after a second, if another agent keeps it.
    pub(super) fn pen(&self, records: &Path) -> Option<Pen<'_>> {
        let until = Instant::now() + PEN_WAIT;
        while !self.lock(PEN, libc::F_WRLCK).unwrap_or(false) {
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.recover(records);
        Some(Pen { ledger: self })
    }

    /// Counts what the last agent that had the pen has written, if it died before it did so itself.
    fn recover(&self, records: &Path) {
        let writing = &self.page().totals.writing;
        let number = usize::try_from(writing.load(Ordering::Acquire)).unwrap_or(usize::MAX).wrapping_sub(1);
        let Some(account) = self.page().accounts.get(number) else { return };
        let load = |value: &AtomicU64| value.load(Ordering::Acquire);
        if load(&account.mark) == load(&account.settled).wrapping_add(1) {
            let written = written_since(records, load(&account.inode), load(&account.offset));
            let written = written.inspect_err(|error| warn!(%error, "cannot tell which records were written last"));
            account.settled.fetch_add(written.unwrap_or(0), Ordering::Release);
        }
        writing.store(0, Ordering::Release);
    }

    /// So many records are written.
    pub(super) fn wrote(&self, count: u64) {
        self.account(self.own).settled.fetch_add(count, Ordering::Release);
    }

    /// So many records were not taken by the disk, or could not be put into words.
    pub(super) fn gave_up(&self, count: u64) {
        self.page().totals.unwritten.fetch_add(count, Ordering::Relaxed);
        self.account(self.own).settled.fetch_add(count, Ordering::Release);
    }

    /// How many records are lost since the file was made: those that their agent did not live to write, and those that found
    /// no room in the queue or on the disk.
    pub(super) fn lost(&self) -> (u64, u64) {
        let totals = &self.page().totals;
        (totals.died.load(Ordering::Relaxed), totals.unwritten.load(Ordering::Relaxed))
    }

    /// Closes a dead agent's account.
    fn settle(&self, number: usize) -> u64 {
        let account = self.account(number);
        let load = |value: &AtomicU64| value.load(Ordering::Acquire);
        let owed = load(&account.begun).saturating_sub(load(&account.settled)).saturating_sub(load(&account.dropped));
        self.page().totals.died.fetch_add(owed, Ordering::Relaxed);
        for value in [&account.begun, &account.settled, &account.dropped, &account.mark] {
            value.store(0, Ordering::Relaxed);
        }
        owed
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped as long as this lives, aligned as pages are, and any bytes are a valid value.
        unsafe { self.page.as_ref() }
    }

    fn account(&self, number: usize) -> &Account {
        // `own` is below `ACCOUNTS` in every ledger that `open` returns.
        &self.page().accounts[number]
    }

    /// Locks or unlocks an account, or the pen; false if a living agent has it.
    fn lock(&self, number: usize, kind: libc::c_int) -> io::Result<bool> {
        let range = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: number as libc::off_t,
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(self.file.as_fd(), FcntlArg::F_OFD_SETLK(&range)) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Pen<'_> {
    /// Records are about to be written to this file, from `offset` on.
    pub(super) fn will_write(&self, inode: u64, offset: u64) {
        let Ledger { own, .. } = *self.ledger;
        let account = self.ledger.account(own);
        account.inode.store(inode, Ordering::Relaxed);
        account.offset.store(offset, Ordering::Relaxed);
        account.mark.store(account.settled.load(Ordering::Relaxed) + 1, Ordering::Release);
        self.ledger.page().totals.writing.store(own as u64 + 1, Ordering::Release);
    }

    /// So many records are written.
    pub(super) fn wrote(self, count: u64) {
        self.ledger.wrote(count);
        self.ledger.page().totals.writing.store(0, Ordering::Release);
    }
}

impl Drop for Pen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.ledger.lock(PEN, libc::F_UNLCK) {
            warn!(%error, "the ledger's lock is not let go");
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made, and nobody has a reference into it any more.
        let _ = unsafe { munmap(self.page.cast(), LENGTH) };
    }
}

/// How many whole lines a file has from `offset` on, if it is still that file. What is behind the last one is half a record
/// of the agent that died, and is cut off.
fn written_since(path: &Path, inode: u64, offset: u64) -> io::Result<u64> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.ino() != inode {
        return Ok(0);
    }
    file.seek(SeekFrom::Start(offset))?;
    let (mut lines, mut end) = (0, offset);
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        (lines, end) = (lines + 1, end + line.len() as u64);
        line.clear();
    }
    if !line.is_empty() {
        file.set_len(end)?;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// What a ledger finds that is opened after another one's agent did `work` and died.
    fn lost_after(work: impl FnOnce(&Ledger, &Path)) -> (u64, String) {
        let folder = tempfile::tempdir().unwrap();
        let (path, records) = (folder.path().join("ledger"), folder.path().join("records"));
        std::fs::write(&records, "before\n").unwrap();
        let (ledger, lost) = Ledger::open(&path, &records).unwrap();
        assert_eq!(lost, 0);
        work(&ledger, &records);
        drop(ledger);
        let (ledger, lost) = Ledger::open(&path, &records).unwrap();
        assert_eq!(ledger.lost().0, lost);
        drop(ledger);
        assert_eq!(Ledger::open(&path, &records).unwrap().1, 0, "counted once");
        (lost, std::fs::read_to_string(&records).unwrap())
    }

    fn begin_write<'a>(ledger: &'a Ledger, records: &Path, text: &str) -> Pen<'a> {
        let mut file = OpenOptions::new().append(true).open(records).unwrap();
        let pen = ledger.pen(records).unwrap();
        let found = file.metadata().unwrap();
        pen.will_write(found.ino(), found.len());
        file.write_all(text.as_bytes()).unwrap();
        pen
    }

    #[test]
    fn what_is_owed_at_an_agents_death_is_lost() {
        let (lost, _) = lost_after(|ledger, _| {
            (0..6).for_each(|_| ledger.begin());
            ledger.forgo();
            ledger.wrote(1);
            ledger.dropped();
            ledger.gave_up(1);
        });
        assert_eq!(lost, 2);
    }

    #[test]
    fn what_was_written_before_it_was_counted_is_not_lost_and_half_a_record_is_cut_off() {
        let (lost, text) = lost_after(|ledger, records| {
            (0..4).for_each(|_| ledger.begin());
            begin_write(ledger, records, "one\n").wrote(1);
            begin_write(ledger, records, "two\nthr");
        });
        assert_eq!((lost, text.as_str()), (2, "before\none\ntwo\n"));
        let (lost, text) = lost_after(|ledger, records| {
            (0..4).for_each(|_| ledger.begin());
            let pen = begin_write(ledger, records, "one\n");
            ledger.wrote(1);
            drop(pen);
        });
        assert_eq!((lost, text.as_str()), (3, "before\none\n"), "a write that was counted is not counted again");
    }

    #[test]
    fn what_another_agent_wrote_since_is_neither_the_dead_ones_nor_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let (path, records) = (folder.path().join("ledger"), folder.path().join("records"));
        std::fs::write(&records, "").unwrap();
        let (dying, _) = Ledger::open(&path, &records).unwrap();
        let (living, _) = Ledger::open(&path, &records).unwrap();
        (0..4).for_each(|_| dying.begin());
        drop(begin_write(&dying, &records, "one\ntw"));
        drop(dying);
        for text in ["three\n", "four\n"] {
            living.begin();
            begin_write(&living, &records, text).wrote(1);
        }
        assert_eq!(Ledger::open(&path, &records).unwrap().1, 3);
        drop(living);
        assert_eq!(Ledger::open(&path, &records).unwrap().1, 0);
        assert_eq!(std::fs::read_to_string(&records).unwrap(), "one\nthree\nfour\n");
    }

    #[test]
    fn one_agent_writes_at_a_time_and_who_keeps_the_pen_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let (hung, _) = Ledger::open(&path, &path).unwrap();
        let (other, _) = Ledger::open(&path, &path).unwrap();
        let pen = hung.pen(&path);
        assert!(other.pen(&path).is_none());
        drop(pen);
        assert!(other.pen(&path).is_some());
    }

    #[test]
    fn two_agents_have_an_account_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let (old, _) = Ledger::open(&path, &path).unwrap();
        old.begin();
        let (new, lost) = Ledger::open(&path, &path).unwrap();
        assert_eq!(lost, 0, "the old one lives");
        new.begin();
        new.wrote(1);
        old.wrote(1);
        drop((old, new));
        assert_eq!(Ledger::open(&path, &path).unwrap().1, 0);
    }
}
