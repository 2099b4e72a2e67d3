//! The device behind a front end and an IOMMU that shuffle, refuse, revoke and are late.

mod guest;
mod hostile;
mod products;
mod stopping;
