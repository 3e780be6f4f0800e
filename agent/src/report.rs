//! One record per connection.
