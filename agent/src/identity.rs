//! Keeps each of our pods' certificates current.
