//! The composition root: builds every part in dependency order and owns the tasks.
