//! Hypervisor policy: FF-A dispatcher, partitions, vendor service, PSCI mediation.
