#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use serde_json::Value;

fn lines(path: &std::path::Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_connection_leaves_one_record_also_if_its_task_panics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.jsonl");
    let (records, writer) = Writer::start("node-a", &path, &directory.path().join("ledger")).unwrap();
    let mut record = records.begin(Direction::Outbound, ConnectionId([7; 16]));
    record.source = Party::at("10.0.0.1:40000");
    record.sent = 5;
    record.ended(Close::Finished, Blame::None, None);
    drop(record);
    let abandoned = records.clone();
    let panicked = std::thread::spawn(move || {
        let _record = abandoned.begin(Direction::Inbound, ConnectionId([8; 16]));
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.join().is_err());
    drop(records);
    writer.finish();
    let lines = lines(&path);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["id"], "07".repeat(16));
    assert_eq!(lines[0]["close"], "finished");
    assert_eq!(lines[0]["source"]["address"], "10.0.0.1:40000");
    assert_eq!(lines[0]["sent"], 5);
    assert_eq!(lines[0]["tls"], Value::Null);
    assert_eq!((&lines[1]["direction"], &lines[1]["close"]), (&"inbound".into(), &"agent_failed".into()));
}

#[test]
fn a_file_that_was_rotated_away_is_opened_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.jsonl");
    let (records, writer) = Writer::start("node-a", &path, &directory.path().join("ledger")).unwrap();
    std::fs::rename(&path, directory.path().join("records.1")).unwrap();
    drop(records.begin(Direction::Outbound, ConnectionId([1; 16])));
    drop(records);
    writer.finish();
    assert_eq!(lines(&path).len(), 1);
}

#[test]
fn what_the_disk_does_not_take_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let (records, writer) = Writer::start("node-a", std::path::Path::new("/dev/full"), &ledger).unwrap();
    let lost = Arc::clone(&records.ledger);
    drop(records.begin(Direction::Outbound, ConnectionId([1; 16])));
    drop(records.begin(Direction::Outbound, ConnectionId([2; 16])));
    drop(records);
    writer.finish();
    assert_eq!(lost.lost(), (0, 2));
}
