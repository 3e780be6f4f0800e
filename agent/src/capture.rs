//! The kernel half, seen from user space: load, attach, pin, accept and dial inside a pod.
