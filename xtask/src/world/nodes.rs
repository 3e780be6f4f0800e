//! Two nodes with a wire between them, and the pods on each.

use std::net::Ipv4Addr;

use super::World;
use super::namespace::Namespace;
use crate::shell::Done;

/// What the wire between the nodes is called, at both of its ends.
pub(crate) const WIRE: &str = "wire";

/// The nodes `a` and `b`. Pods of 10.77.1.0/24 live on `a`, those of 10.77.2.0/24 on `b`.
pub(crate) struct Nodes {
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
}

impl Nodes {
    /// Makes both in `world`.
    pub(crate) fn make(world: &World) -> Done<Self> {
        let (a, b) = (world.namespace("a")?, world.namespace("b")?);
        let (first, second) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2));
        a.join(first, &b, second, WIRE)?;
        for (node, others, gateway) in [(&a, "10.77.2.0/24", second), (&b, "10.77.1.0/24", first)] {
            node.forward()?;
            node.route(others, gateway)?;
        }
        Ok(Self { a, b })
    }

    /// Adds a pod to the node to which `address` belongs.
    pub(crate) fn pod(&self, world: &World, name: &str, address: Ipv4Addr) -> Done<Namespace> {
        let pod = world.namespace(name)?;
        let [one, two, node, _] = address.octets();
        let owner = if node == 1 { &self.a } else { &self.b };
        owner.adopt(&pod, address, Ipv4Addr::new(one, two, node, 1), &format!("pod-{name}"))?;
        Ok(pod)
    }
}
