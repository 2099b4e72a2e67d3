//! A page that vanishes under the program ends it with exit code 5 and the message that was left, not with a signal.

use std::fs::File;
use std::process::Command;

use flexserve::sys::{FileMap, on_bus_error};

const CHILD: &str = "FLEXSERVE_TEST_BUS_ERROR";

#[test]
fn a_vanished_page_ends_the_process_in_an_orderly_way() {
    if let Some(path) = std::env::var_os(CHILD) {
        on_bus_error(2, b"the page is gone\n".to_vec());
        let map = FileMap::new(&File::open(&path).unwrap()).unwrap();
        assert_eq!(map.bytes().len(), 8192);
        File::create(&path).unwrap();
        let byte = map.bytes().last().copied();
        unreachable!("the page still reads {byte:?}");
    }
    let path = std::env::temp_dir().join(format!("flexserve-bus-{}", std::process::id()));
    std::fs::write(&path, [1; 8192]).unwrap();
    let child = Command::new(std::env::current_exe().unwrap()).env(CHILD, &path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(child.status.code(), Some(5), "{child:?}");
    assert_eq!(child.stderr, b"the page is gone\n");
}
