//! The wire protocol `mantle/1` between two agents, as a pure state machine.
