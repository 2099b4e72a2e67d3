//! Writes cpio archives in the newc format, which Linux unpacks as initramfs (Documentation/driver-api/early-userspace/
//! buffer-format.rst). Archives may follow each other; the last one wins.

/// Mode bits of a folder, an executable, a file, a character device.
const FOLDER: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive being written. Every entry belongs to root and carries time 0, so that equal contents give equal bytes.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    inode: u32,
}

impl Archive {
    /// Adds an executable file; `path` has no leading slash. Missing parent folders are added.
    pub fn executable(&mut self, path: &str, contents: &[u8]) {
        self.parents(path);
        self.entry(path, EXECUTABLE, contents, (0, 0));
    }

    /// Adds a plain file.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.parents(path);
        self.entry(path, FILE, contents, (0, 0));
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str) {
        self.parents(path);
        if !self.folders.iter().any(|known| known == path) {
            self.folders.push(path.to_owned());
            self.entry(path, FOLDER, &[], (0, 0));
        }
    }

    /// Adds a character device node.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE, &[], (major, minor));
    }

    /// Ends the archive; its size is a multiple of 512, so that another can follow.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (index, _) in path.match_indices('/') {
            self.folder(&path[..index]);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8], device: (u32, u32)) {
        let name_size = path.len() as u32 + 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        self.bytes.extend_from_slice(b"070701");
        let fields =
            [self.inode, mode, 0, 0, links, 0, contents.len() as u32, 0, 0, device.0, device.1, name_size, 0];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.inode += 1;
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: (path, mode, contents).
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * index..][..8]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1) as u32, field(6), field(11));
            let path = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let data = (110 + name_size).next_multiple_of(4);
            let contents = bytes[data..data + size].to_vec();
            if path == "TRAILER!!!" {
                return entries;
            }
            entries.push((path, mode, contents));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_parents_and_padding() {
        let mut archive = Archive::default();
        archive.executable("init", b"program");
        archive.file("etc/flexserve/job.json", b"{}");
        archive.folder("etc");
        archive.character_device("dev/console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let entries = read(&bytes);
        let paths: Vec<&str> = entries.iter().map(|(path, _, _)| path.as_str()).collect();
        assert_eq!(paths, ["init", "etc", "etc/flexserve", "etc/flexserve/job.json", "dev", "dev/console"]);
        assert_eq!(entries[0].1, EXECUTABLE);
        assert_eq!(entries[0].2, b"program");
        assert_eq!(entries[1].1, FOLDER);
        assert_eq!(entries[3].2, b"{}");
        assert_eq!(entries[5].1, CHARACTER_DEVICE);
    }
}
