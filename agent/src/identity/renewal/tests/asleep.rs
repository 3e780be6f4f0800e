//! Case 66: a node that has slept for a day, while its join token, its attestation and its pod's certificate ended together.
//! The CA is a real one; of the certificate that has ended another one is the issuer, since a real CA issues for now only.

use ca::wire::WatchAck;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::counts::Counts;
use crate::identity::calls;
use crate::identity::client::{Client, key_request};
use crate::identity::node::Node as NodeState;
use crate::identity::tests::TestCa;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WEB: &str = "spiffe://test.mantle/ns/shop/sa/web-sa";

/// A node that has joined the CA, and whose `uid-web` was certified yesterday.
struct Yesterday {
    ca: TestCa,
    clocks: Clocks,
    inherited: Inherited,
    trust: Arc<Trust>,
}

/// What keeps the pod's certificate.
struct Running {
    certificates: watch::Receiver<Arc<Certificates>>,
    trust: watch::Sender<Arc<Trust>>,
    counts: Counts,
    _wanted: watch::Sender<Vec<(PodUid, SpiffeId)>>,
    _tasks: JoinSet<()>,
}

impl Yesterday {
    /// And the client with which it has joined.
    async fn joined() -> (Self, Client) {
        let ca = TestCa::start().await;
        let config = ca.node("node-a", "a", Some(&ca.token("node-a")));
        let mut client = Client::new(&config, NodeState::open(&config).unwrap(), &Counts::default());
        let root = root(&mut client).await;
        let clocks = Clocks::before(DAY);
        let issuer = Ca::new(&clocks);
        let request = key_request().unwrap();
        let item = SignItem { pod_uid: "uid-web".into(), csr: request.csr, ttl: 0 };
        let mut leaf = issuer.request(&item);
        leaf.params.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
        let leaf = leaf.signed_by(&issuer.root.1).unwrap().der().clone();
        let anchors = HashMap::from([("test.mantle".parse().unwrap(), vec![issuer.root.0.clone(), root])]);
        let inherited =
            Inherited { uid: uid("uid-web"), identity: WEB.parse().unwrap(), chain: vec![leaf], key: request.key };
        (Self { ca, clocks, inherited, trust: Trust::new(anchors).unwrap() }, client)
    }

    fn goes_on(self, client: Client) -> (Running, TestCa, Clocks) {
        let Self { ca, clocks, inherited, trust } = self;
        let (wanted, wants) = watch::channel(vec![(inherited.uid.clone(), inherited.identity.clone())]);
        let (trust, trusted) = watch::channel(trust);
        let (writer, certificates) = watch::channel(Arc::default());
        let counts = client.counts().clone();
        let (calls, connection) = calls::open(client);
        let told = Told {
            wanted: wants,
            trust: trusted,
            rotations: watch::channel(Arc::default()).1,
            ca_back: Arc::default(),
        };
        let asks = Asks { node: "node-a".into(), ttl: None };
        let renewal = Renewal::new((calls, clocks.clone()), asks, told, writer, vec![inherited]);
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        tasks.spawn(renewal.run());
        (Running { certificates, trust, counts, _wanted: wanted, _tasks: tasks }, ca, clocks)
    }
}

impl Running {
    fn serial(&self) -> Option<String> {
        self.certificates.borrow().held.get(&uid("uid-web")).map(|held| held.serial().to_owned())
    }

    /// Whether the CA has attested this node so often.
    fn has_attested(&self, times: u32) -> bool {
        let (mut registry, mut text) = (Registry::default(), String::new());
        self.counts.register(&mut registry);
        encode(&mut text, &registry).unwrap();
        text.contains(&format!("ca_requests_total{{call=\"attest\",code=\"Ok\"}} {times}\n"))
    }

    fn error(&self) -> String {
        let all = self.certificates.borrow();
        all.standings().find_map(|(_, standing)| standing.error.clone()).unwrap_or_default()
    }

    /// Has the clocks looked at, as is done twice a minute.
    async fn look(&mut self) {
        self.certificates.mark_unchanged();
        self.trust.send_modify(|_| {});
        self.certificates.changed().await.unwrap();
    }

    async fn another(&mut self, serial: &Option<String>) -> Arc<Credentials> {
        let held = |all: &Arc<Certificates>| all.held.get(&uid("uid-web")).cloned();
        let other = |all: &Arc<Certificates>| held(all).is_some_and(|held| Some(held.serial()) != serial.as_deref());
        held(&self.certificates.wait_for(other).await.unwrap()).unwrap()
    }
}

/// By whom the CA's certificates are proved.
async fn root(client: &mut Client) -> CertificateDer<'static> {
    let (acks, sent) = mpsc::channel(1);
    acks.send(WatchAck::default()).await.unwrap();
    let updates = client.session().await.unwrap().watch(ReceiverStream::new(sent)).await;
    let update = updates.unwrap().into_inner().message().await.unwrap().unwrap();
    update.bundles[0].anchors[0].clone().into()
}

/// A node that has just woken, and the serial number that it went to sleep with.
async fn woken(meanwhile: impl FnOnce(&TestCa)) -> (Running, TestCa, Option<String>) {
    let (yesterday, mut client) = Yesterday::joined().await;
    client.outlive_attestation();
    let (mut node, mut ca, clocks) = yesterday.goes_on(client);
    let first = node.serial();
    assert!(first.is_some() && node.has_attested(1), "as if it were still yesterday");
    // No connection outlives a day either.
    ca.stop().await;
    meanwhile(&ca);
    clocks.sleep(DAY);
    node.look().await;
    assert_eq!(node.serial(), None, "nothing that has ended is shown");
    ca.run().await;
    (node, ca, first)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_sleep_in_which_everything_ended_is_made_up_for_by_itself() {
    let (mut node, _ca, first) = woken(|_| {}).await;
    let second = node.another(&first).await;
    assert!(second.left() > Duration::ZERO && second.identity().as_str() == WEB);
    assert!(node.has_attested(2), "by its key, as nobody's agent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_evicted_in_that_sleep_does_not_come_back_by_itself() {
    let (node, _ca, _) = woken(|ca| ca::operate::evict(&ca.config, "node-a").unwrap()).await;
    let told = async {
        while !node.error().contains("the node's key is not pinned") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
    assert_eq!(node.serial(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_after_that_day_needs_no_other_token() {
    let (yesterday, _) = Yesterday::joined().await;
    yesterday.clocks.sleep(DAY);
    let over = ca::create_token(&yesterday.ca.config, "node-a", Duration::ZERO).unwrap();
    let config = yesterday.ca.node("node-a", "a", Some(&over));
    let client = Client::new(&config, NodeState::open(&config).unwrap(), &Counts::default());
    let (mut node, _ca, _) = yesterday.goes_on(client);
    assert_eq!(node.serial(), None, "what it inherits has ended");
    assert!(node.another(&None).await.left() > Duration::ZERO);
}
