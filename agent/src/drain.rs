//! Stopping: a trigger, and handles that hold work in progress.
