//! Policies: small cases with their story, and many random ones against a naive model.

mod model;
mod plans;
