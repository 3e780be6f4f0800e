#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::os::fd::AsFd as _;
use std::thread;

use agent_core::deny::DenyList;

use super::*;
use crate::identity::Inherited;

fn inheritance() -> Inheritance {
    let pods = vec![Inherited {
        uid: "uid-web".parse().unwrap(),
        identity: "spiffe://test.mantle/ns/shop/sa/web".parse().unwrap(),
        chain: vec![vec![1, 2, 3].into(), vec![0xff; 300].into()],
        key: Zeroizing::new(vec![0, 7, 0xfe]),
    }];
    let trust = [("test.mantle".parse().unwrap(), vec![vec![9; 40].into()])].into();
    let deny = DenyList {
        identities: ["spiffe://test.mantle/ns/shop/sa/db".parse().unwrap()].into(),
        pods: ["uid-db".parse().unwrap()].into(),
        keys: [[0xab; 32]].into(),
        serials: [("test.mantle".parse().unwrap(), "01ff".to_owned())].into_iter().collect(),
        nodes: ["node-b".to_owned()].into(),
        trust_domains: ["other.mantle".parse().unwrap()].into(),
    };
    Inheritance { directory: "revision: 7\n".into(), estate: Estate { trust, deny, sequence: 12, pods } }
}

pub(super) fn written_and_read(estate: Estate) -> Estate {
    let text = text::write(&Inheritance { directory: String::new(), estate }).unwrap();
    text::read(&text).unwrap().estate
}

/// Runs both ends; the successor says that it serves if `serves`.
async fn exchange(serves: bool) -> (Result<(), HandOverError>, Inheritance, fs::Metadata, fs::Metadata) {
    let folder = tempfile::tempdir().unwrap();
    let (socket, lock) = (folder.path().join("socket"), tempfile::tempfile().unwrap());
    let door = Door::open(&socket).unwrap();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let asks = thread::spawn(move || {
        let taken = take(&socket).unwrap();
        let lock = fs::File::from(taken.lock.try_clone().unwrap()).metadata().unwrap();
        let inheritance = Inheritance {
            directory: taken.inheritance.directory.clone(),
            estate: Estate {
                trust: taken.inheritance.estate.trust.clone(),
                deny: taken.inheritance.estate.deny.clone(),
                sequence: taken.inheritance.estate.sequence,
                pods: Vec::new(),
            },
        };
        let pods = taken.inheritance.estate.pods.len();
        if serves {
            taken.predecessor.serving().unwrap();
        }
        (inheritance, pods, lock)
    });
    let successor = door.knock().await;
    let given = successor.give(&inheritance(), lock.as_fd());
    let (taken, pods, lock_there) = asks.join().unwrap();
    assert_eq!(pods, 1);
    (given, taken, lock.metadata().unwrap(), lock_there)
}

#[tokio::test]
async fn a_successor_gets_everything_and_says_that_it_serves() {
    use std::os::unix::fs::MetadataExt as _;
    let (given, taken, here, there) = exchange(true).await;
    given.unwrap();
    assert_eq!(taken.directory, "revision: 7\n");
    assert_eq!(taken.estate.trust, inheritance().estate.trust);
    assert_eq!((taken.estate.deny, taken.estate.sequence), (inheritance().estate.deny, 12));
    assert_eq!((here.dev(), here.ino()), (there.dev(), there.ino()), "the lock is the very same file");
}

#[tokio::test]
async fn one_that_goes_away_has_not_taken_over() {
    let (given, ..) = exchange(false).await;
    assert!(matches!(given, Err(HandOverError::Exchange(_))), "{given:?}");
}

#[test]
fn what_is_written_is_read() {
    let before = inheritance();
    let after = text::read(&text::write(&before).unwrap()).unwrap();
    assert_eq!(after.directory, before.directory);
    let (before, after) = (&before.estate.pods[0], &after.estate.pods[0]);
    assert_eq!((&after.uid, &after.identity), (&before.uid, &before.identity));
    assert_eq!((&after.chain, &after.key), (&before.chain, &before.key));
    for text in ["", "{}", "{\"directory\":\"\",\"trust\":{\"A B\":[]},\"pods\":[]}"] {
        assert!(text::read(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn nobody_there_is_told() {
    let found = take(Path::new("/nowhere/socket")).err();
    assert!(matches!(found, Some(HandOverError::Nobody(_))));
}
