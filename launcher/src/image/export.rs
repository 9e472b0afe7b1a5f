//! `rlaunch image export`: an image for others. The same image gives the same bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal as _, Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use unionfs::layer::compressed;

use super::digest::{Digest, Digesting};
use super::manifest::Index;
use super::store::{Image, LAYOUT_TEXT, Store};
use crate::failure::{Doing as _, Failure};

/// What is exported.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ExportOptions {
    /// Where it goes: a file, a directory that is new or empty, or - for standard output
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// In which form
    #[arg(long, value_name = "FORM", default_value = "oci-archive")]
    format: ExportForm,
    /// The image, by its name or id
    image: String,
}

/// In which form an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportForm {
    /// An OCI image layout, a directory
    Oci,
    /// An OCI image layout in an archive
    OciArchive,
    /// What docker load and podman load read, an archive
    DockerArchive,
}

/// A file of the result.
struct Member {
    name: String,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    /// A blob of the store, of this length.
    Blob(Digest, u64),
    /// A layer of the store, decompressed; its diff_id and its length then.
    Plain {
        blob: Digest,
        diff_id: Digest,
        size: u64,
    },
}

pub(crate) fn run(options: &ExportOptions) -> Result<String, Failure> {
    let store = Store::open()?;
    let image = store.find(&options.image)?;
    let doing = format!("export {} to {}", options.image, options.output.display());
    let members = match options.format {
        ExportForm::Oci | ExportForm::OciArchive => layout(&image)?,
        ExportForm::DockerArchive => docker(&store, &image)?,
    };
    let written = match (options.format, options.output.as_os_str().as_encoded_bytes()) {
        (ExportForm::Oci, _) => to_directory(&store, &members, &options.output),
        (_, b"-") => to_standard_output(&store, &members),
        _ => to_file(&store, &members, &options.output),
    };
    written.doing(&doing)?;
    Ok(String::new())
}

/// The files of an OCI image layout; see the image specification, "Image Layout".
fn layout(image: &Image) -> Result<Vec<Member>, Failure> {
    let index = serde_json::to_vec(&Index::new(vec![image.descriptor.clone()]));
    let index = index.map_err(|error| Failure::because("write the index", error))?;
    let manifest = &image.manifest;
    let mut blobs: Vec<(Digest, u64)> = [&image.descriptor, &manifest.config]
        .into_iter()
        .chain(&manifest.layers)
        .map(|one| (one.digest, one.size))
        .collect();
    blobs.sort_unstable();
    blobs.dedup();
    let blob = |(digest, size): (Digest, u64)| Member {
        name: format!("blobs/sha256/{}", digest.hex()),
        content: Content::Blob(digest, size),
    };
    let documents = [("oci-layout", LAYOUT_TEXT.to_vec()), ("index.json", index)];
    let document = |(name, text): (&str, Vec<u8>)| Member { name: name.to_owned(), content: Content::Bytes(text) };
    Ok(documents.into_iter().map(document).chain(blobs.into_iter().map(blob)).collect())
}

/// The files of docker's archives: plain layers, the configuration, and what belongs together.
fn docker(store: &Store, image: &Image) -> Result<Vec<Member>, Failure> {
    let mut members: Vec<Member> = Vec::new();
    let mut names = Vec::new();
    for layer in &image.manifest.layers {
        let missing =
            || Failure::new(format!("the layer {} is missing", layer.digest)).remedy("import the image again");
        let diff = store.diff(layer.digest).ok_or_else(missing)?;
        let name = format!("{}.tar", diff.diff_id.hex());
        if !names.contains(&name) {
            let content = Content::Plain { blob: layer.digest, diff_id: diff.diff_id, size: diff.size };
            members.push(Member { name: name.clone(), content });
        }
        names.push(name);
    }
    let config = format!("{}.json", image.id().hex());
    let tags: Vec<_> = image.name().into_iter().collect();
    let list = json!([{ "Config": config, "RepoTags": tags, "Layers": names }]).to_string();
    members.push(Member { name: config, content: Content::Bytes(image.config_text.clone()) });
    members.push(Member { name: "manifest.json".to_owned(), content: Content::Bytes(list.into_bytes()) });
    Ok(members)
}

impl Member {
    fn size(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Blob(_, size) | Content::Plain { size, .. } => *size,
        }
    }

    /// Writes the content, which is what its digest says.
    fn write(&self, store: &Store, out: impl Write) -> io::Result<()> {
        match &self.content {
            Content::Bytes(bytes) => {
                let mut out = out;
                out.write_all(bytes)
            }
            Content::Blob(digest, size) => copy(File::open(store.blob(*digest))?, out, *digest, *size),
            Content::Plain { blob, diff_id, size } => {
                copy(compressed::plain(File::open(store.blob(*blob))?)?, out, *diff_id, *size)
            }
        }
    }
}

fn copy(input: impl Read, out: impl Write, digest: Digest, size: u64) -> io::Result<()> {
    match Digesting::new(input, out, size).finish()? {
        found if found == (digest, size) => Ok(()),
        _ => Err(io::Error::other(format!("{digest} is damaged in the image store: import the image again"))),
    }
}

/// Writes an archive.
fn archive(store: &Store, members: &[Member], out: impl Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(256 * 1024, out);
    let mut last = PathBuf::new();
    for member in members {
        let parent = Path::new(&member.name).parent().unwrap_or(Path::new("")).to_owned();
        if parent != last {
            // Those above it first.
            let above: Vec<_> = parent.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
            for path in above.into_iter().rev() {
                out.write_all(
                    header(&format!("{}/", path.display()), tar::EntryType::Directory, 0o755, 0)?.as_bytes(),
                )?;
            }
            last = parent;
        }
        let size = member.size();
        out.write_all(header(&member.name, tar::EntryType::Regular, 0o644, size)?.as_bytes())?;
        member.write(store, &mut out)?;
        out.write_all(&[0; 512][..(size.next_multiple_of(512) - size) as usize])?;
    }
    out.write_all(&[0; 1024])?;
    out.flush()
}

/// Nothing in it depends on who writes the archive, or when.
fn header(name: &str, kind: tar::EntryType, mode: u32, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    for set in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_mtime] {
        set(&mut header, 0);
    }
    header.set_cksum();
    Ok(header)
}

fn to_standard_output(store: &Store, members: &[Member]) -> io::Result<()> {
    let out = io::stdout();
    if out.is_terminal() {
        return Err(io::Error::other("an archive is no text for a terminal: give a file with -o, or a pipe"));
    }
    archive(store, members, out.lock())
}

/// Writes a file, which gets its name when it is complete; into what is no file, such as a pipe, at once.
fn to_file(store: &Store, members: &[Member], path: &Path) -> io::Result<()> {
    let is_stream = fs::metadata(path).is_ok_and(|about| {
        let kind = about.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_socket()
    });
    if is_stream {
        return archive(store, members, File::options().write(true).open(path)?);
    }
    if fs::metadata(path).is_ok_and(|about| about.is_dir()) {
        return Err(io::Error::other("it is a directory: give a file, or --format oci"));
    }
    // The umask takes from it what it takes from everything.
    let mut file =
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o666)).tempfile_in(parent(path)?)?;
    archive(store, members, file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Writes a directory, which gets its name when it is complete.
fn to_directory(store: &Store, members: &[Member], path: &Path) -> io::Result<()> {
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err(io::Error::other("the directory is not empty")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let made = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o777)).tempdir_in(parent(path)?)?;
    for member in members {
        let place = made.path().join(&member.name);
        fs::create_dir_all(place.parent().unwrap_or(made.path()))?;
        let mut out = BufWriter::with_capacity(256 * 1024, File::create(place)?);
        member.write(store, &mut out)?;
        out.flush()?;
    }
    rustix::fs::syncfs(File::open(made.path())?.as_fd())?;
    fs::rename(made.path(), path)?;
    // It is not temporary any more.
    drop(made.keep());
    Ok(())
}

fn parent(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    path.parent().map(Path::to_owned).ok_or_else(|| io::Error::other("it has no directory"))
}
