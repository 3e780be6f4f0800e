//! What Prometheus reads, in the OpenMetrics text format.

use std::collections::BTreeMap;
use std::fmt;

use agent_core::identity::Hex;
use agent_core::lifecycle::State;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::View;
use super::certs::{certs, left};

const STATES: [State; 9] = [
    State::Absent,
    State::Fetching,
    State::Backoff,
    State::Valid,
    State::Renewing,
    State::Critical,
    State::Expired,
    State::Denied,
    State::Draining,
];

type Labels = Vec<(&'static str, String)>;
type Rows = Vec<(Labels, f64)>;

/// Everything that this agent shows.
pub(super) fn registry(view: &View) -> Registry {
    let mut registry = Registry::with_prefix("mantle");
    view.counts.register(&mut registry);
    registry.register_collector(Box::new(Snapshots(view.clone())));
    registry
}

/// The text as of now.
pub(super) fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, registry);
    text
}

/// What is told by the snapshots of the moment.
#[derive(Debug)]
struct Snapshots(View);

impl Collector for Snapshots {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(view) = self;
        gauge(&mut encoder, "identity_state", "Pods of this node by the state of their certificate", states(view))?;
        let ends = "How long each pod's certificate is valid; 0 if it has none";
        gauge(&mut encoder, "identity_seconds_to_expiry", ends, ends_of(view))?;
        let trust = view.trust.borrow().clone();
        let sequence = trust.certificates().into_iter().filter(|(_, anchors)| !anchors.is_empty());
        let sequence =
            sequence.map(|(domain, _)| (vec![("trust_domain", domain.to_string())], trust.sequence() as f64));
        let what = "The CA's sequence of trust that is in force, for each trust domain that has anchors";
        gauge(&mut encoder, "bundle_sequence", what, sequence.collect())?;
        let tunnels = trust.tunnels().into_iter();
        let tunnels = tunnels.map(|(anchor, count)| (vec![("anchor", Hex(&anchor).to_string())], f64::from(count)));
        let what = "Living tunnels, by the anchors that proved their ends";
        gauge(&mut encoder, "tunnels", what, tunnels.collect())?;
        let watched = view.watched.borrow().clone();
        let connected = f64::from(u8::from(watched.connected));
        let what = "Whether the CA would tell this agent of a change of trust now";
        gauge(&mut encoder, "ca_connected", what, vec![(Vec::new(), connected)])?;
        let skew = watched.skew_ms.map(|millis| (Vec::new(), millis as f64 / 1000.0));
        let what = "This node's clock less the CA's, as it was when the CA spoke last";
        gauge(&mut encoder, "clock_skew_seconds", what, skew.into_iter().collect())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: Rows) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    rows.iter().try_for_each(|(labels, value)| ConstGauge::new(*value).encode(family.encode_family(labels)?))
}

/// Each state, also those that no pod is in.
fn states(view: &View) -> Rows {
    let mut count: BTreeMap<&str, f64> = STATES.iter().map(|state| (state.name(), 0.0)).collect();
    let held = view.certificates.borrow().clone();
    for (_, standing) in held.standings() {
        *count.entry(standing.state).or_default() += 1.0;
    }
    count.into_iter().map(|(state, count)| (vec![("state", state.to_owned())], count)).collect()
}

fn ends_of(view: &View) -> Rows {
    let row = |row: super::Row| {
        let labels = vec![
            ("namespace", row.namespace.unwrap_or_default()),
            ("pod", row.name.unwrap_or_default()),
            ("uid", row.uid),
        ];
        (labels, row.not_after.map_or(0.0, |end| left(end) as f64))
    };
    certs(view).certificates.into_iter().map(row).collect()
}
