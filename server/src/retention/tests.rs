//! Policies: small cases with their story, and many random ones against a naive model.

mod life;
mod model;
mod plans;
