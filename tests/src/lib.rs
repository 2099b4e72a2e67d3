//! System tests and attack suite.
