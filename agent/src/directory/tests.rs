#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

const ONE: &str = "revision: 1\ntrust_domain: demo.mantle\npods: []\n";

fn trust_domain() -> TrustDomain {
    "demo.mantle".parse().unwrap()
}

#[tokio::test]
async fn changes_are_taken_up_and_mistakes_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("directory.yaml");
    std::fs::write(&path, ONE).unwrap();
    let source = Source::start(&path, ("node-b", &trust_domain()), None).unwrap();
    let (mut directory, mut problem) = (source.directory(), source.problem());
    assert_eq!(directory.borrow_and_update().revision(), 1);

    // In place.
    std::fs::write(&path, ONE.replace("revision: 1", "revision: 2")).unwrap();
    directory.wait_for(|directory| directory.revision() == 2).await.unwrap();

    // Not right: the old one stays, and the author is told.
    std::fs::write(&path, ONE.replace("pods", "pots")).unwrap();
    let told = problem.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(told.contains("unknown key `pots`; did you mean `pods`?"), "{told}");
    assert_eq!(directory.borrow().revision(), 2);

    // Mended by the very text that is in force.
    std::fs::write(&path, ONE.replace("revision: 1", "revision: 2")).unwrap();
    problem.wait_for(Option::is_none).await.unwrap();
    std::fs::write(&path, ONE.replace("pods", "pots")).unwrap();
    problem.wait_for(Option::is_some).await.unwrap();

    // By a rename, as careful authors do it.
    let next = folder.path().join("next");
    std::fs::write(&next, ONE.replace("revision: 1", "revision: 3")).unwrap();
    std::fs::rename(&next, &path).unwrap();
    directory.wait_for(|directory| directory.revision() == 3).await.unwrap();
    problem.wait_for(Option::is_none).await.unwrap();

    // In force, but nobody can tell by its number.
    for revision in [3, 2] {
        std::fs::write(&path, ONE.replace("revision: 1", &format!("revision: {revision}\n# {revision}"))).unwrap();
        let wanted = format!("(3, now {revision})");
        problem.wait_for(|told| told.as_ref().is_some_and(|told| told.contains(&wanted))).await.unwrap();
        assert_eq!(directory.borrow().revision(), revision);
    }
    std::fs::write(&path, ONE.replace("revision: 1", "revision: 4")).unwrap();
    problem.wait_for(Option::is_none).await.unwrap();
}

#[tokio::test]
async fn another_trust_domains_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("directory.yaml");
    std::fs::write(&path, ONE.replace("demo.mantle", "other.mantle")).unwrap();
    assert!(matches!(Source::start(&path, ("node-b", &trust_domain()), None), Err(SourceError::TrustDomain { .. })));
}

#[tokio::test]
async fn another_clusters_pod_is_not_on_this_node() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("directory.yaml");
    let pod = "{uid: far, name: far, namespace: shop, service_account: far, trust_domain: b.example, node: node-b, \
               addresses: [10.88.0.1]}";
    std::fs::write(&path, ONE.replace("[]", &format!("[{pod}]"))).unwrap();
    let start = |node| Source::start(&path, (node, &trust_domain()), None).map(|source| source.directory());
    assert!(matches!(start("node-b"), Err(SourceError::Foreign { .. })));
    assert!(start("node-a").is_ok());
}

#[test]
fn the_status_is_replaced_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("status.json");
    let mut status = StatusFile::new(&path, "i", "n");
    let pod = PodStatus {
        uid: "u-1".parse().unwrap(),
        pod: "shop/web".into(),
        state: PodState::Refused,
        reason: Some("no".into()),
        plaintext_ports: vec![9090],
    };
    let counted = Counted {
        refusals: [("strict", 2)].into(),
        waivers: [("fail_open", 0)].into(),
        records_lost: [("agent_died", 1)].into(),
        ..Counted::default()
    };
    let trust = TrustStatus { sequence: 3, connected: true, since: 9, skew_ms: Some(-2), problem: None };
    status.write(&Report { revision: 7, problem: None, capture_problem: None, pods: vec![pod] }, &trust, &counted);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        text,
        "{\"instance\":\"i\",\"node\":\"n\",\"revision\":7,\"problem\":null,\"capture_ok\":true,\
         \"capture_problem\":null,\"trust\":{\"sequence\":3,\"connected\":true,\"since\":9,\"skew_ms\":-2,\"problem\":null},\"pods\":[{\"uid\":\"u-1\",\"pod\":\
         \"shop/web\",\"state\":\"refused\",\"reason\":\"no\",\"plaintext_ports\":[9090]}],\"refusals\":{\"strict\":2},\
         \"waivers\":{\"fail_open\":0},\"connections\":{},\"warnings\":[],\"records_lost\":{\"agent_died\":1}}\n"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
