//! Finds the files in a folder that contain a model's weights.
//!
//! As in transformers, `model.safetensors` comes first, then the shards that `model.safetensors.index.json`
//! lists, then `pytorch_model.bin` and its shards. If all weights in a folder are in other formats, that is
//! an error, so that training does not start from new weights instead.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::regular_file::{self, SMALL};

/// The weights of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeightFiles {
    /// Files of one format, which together contain every tensor.
    pub(crate) files: Vec<PathBuf>,
    /// A message about a file that is not read.
    pub(crate) ignored: Option<String>,
}

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The supported formats in order of preference. For each format: the name of a single file, and the name of
/// the list of shards.
const READ: [(&str, &str); 2] = [
    (WHOLE, INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];

/// Dots separate the parts of a file name. A file whose name has one of these parts is taken for weights.
const PARTS: [&str; 29] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "hdf5",
    "keras",
    "msgpack",
    "gguf",
    "ggml",
    "ggjt",
    "onnx",
    "onnx_data",
    "ot",
    "pb",
    "tflite",
    "mlmodel",
    "npz",
    "npy",
    "nemo",
    "distcp",
    "pkl",
    "pickle",
    "safetensor",
    "llamafile",
    "mar",
    "params",
    "weights",
];

impl WeightFiles {
    /// Finds the weights in a folder. Returns `None` if the folder contains no weight files.
    ///
    /// # Errors
    /// Returns an error if the weights are in an unsupported format, or the list of shards cannot be used.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>> {
        // A broken link counts as present, because it stands for a file that was not fetched.
        let has = |name: &str| folder.join(name).symlink_metadata().is_ok();
        for (whole, index) in READ {
            if has(whole) {
                let index = folder.join(index);
                let ignored = index.symlink_metadata().is_ok().then(|| {
                    let index = index.display();
                    format!("{whole} is read; the list of shards next to it is ignored: {index}")
                });
                let files = vec![folder.join(whole)];
                return Ok(Some(Self { files, ignored }));
            }
            if has(index) {
                return Ok(Some(Self {
                    files: shards(folder, index)?,
                    ignored: None,
                }));
            }
        }
        match others(folder) {
            Ok(others) => match others.first() {
                Some(first) => Err(not_read(folder, first, others.len())),
                None => Ok(None),
            },
            Err(error) => Err(Error::io("read the model's folder", folder, &error)),
        }
    }
}

/// Whether a file's name indicates weights.
pub(crate) fn is_weights(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut parts = name.split('.').skip(1).peekable();
    let is_part = |part: &str| PARTS.contains(&part) || part.starts_with("ckpt-");
    let last = name.rsplit('.').next().unwrap_or_default();
    // TensorFlow's `model-1000.data-00000-of-00001` is recognized by its last part.
    parts.any(is_part) || last.starts_with("data-0")
}

/// Returns the weight files in a folder, then those in its subfolders.
fn others(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = Vec::new();
    for (name, is_folder) in entries(folder)? {
        match is_folder {
            true => folders.push(name),
            false if is_weights(&name.to_string_lossy()) => found.push(PathBuf::from(name)),
            false => {}
        }
    }
    found.sort();
    folders.sort();
    for below in folders {
        // Unreadable subfolders are ignored: they are unlikely to contain the model.
        for (name, is_folder) in entries(&folder.join(&below)).unwrap_or_default() {
            if !is_folder && is_weights(&name.to_string_lossy()) {
                found.push(Path::new(&below).join(name));
            }
        }
    }
    Ok(found)
}

fn entries(folder: &Path) -> io::Result<Vec<(OsString, bool)>> {
    fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), entry.path().is_dir()))
        })
        .collect()
}

fn not_read(folder: &Path, first: &Path, count: usize) -> Error {
    let name = first.to_string_lossy();
    let more = match count {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let message = format!(
        "the model's folder has weights in an unsupported format: {name}{more}: {}",
        folder.display()
    );
    let new = format!(
        "to train new weights with the model's configuration, use --model {}",
        folder.join("config.json").display()
    );
    Error::new(ErrorKind::Config, message).hint(format!("{}; {new}", conversion(folder, &name)))
}

/// Returns a hint on how to convert a weight file to a supported format.
fn conversion(folder: &Path, name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let from = folder.display();
    let convert = |class: &str, more: &str, then: &str| {
        format!(
            "convert it with transformers: {class}.from_pretrained(\"{from}\"{more}){then}.save_pretrained(\"NEW\")"
        )
    };
    let model = |more: &str| convert("AutoModelForCausalLM", more, "");
    let is = |part: &str| lower.split('.').skip(1).any(|p| p == part);
    if lower.contains("adapter") {
        return format!(
            "an adapter is not a whole model; {}",
            convert("peft.AutoPeftModelForCausalLM", "", ".merge_and_unload()")
        );
    }
    if is("safetensors") {
        if let Some((below, _)) = name.split_once('/') {
            return format!(
                "if the model is in the subfolder, use --model {}",
                folder.join(below).display()
            );
        }
        return match lower.contains("-of-") {
            true => format!("fetch the list of shards too: {INDEX}"),
            false => format!("if it is the whole model, rename it to {WHOLE}"),
        };
    }
    if name.contains('/') {
        return "save the model as model.safetensors with the program that created it".to_owned();
    }
    if is("gguf") || is("ggml") {
        return model(&format!(", gguf_file=\"{name}\""));
    }
    if is("h5") {
        return model(", from_tf=True");
    }
    if is("msgpack") {
        return model(", from_flax=True");
    }
    if lower.starts_with("pytorch_model") {
        return model("");
    }
    if ["pt", "pth", "bin"].into_iter().any(is) {
        return format!(
            "load it with torch and save it with the tensor names of transformers: safetensors.torch.save_file(weights, \"{}\")",
            folder.join(WHOLE).display()
        );
    }
    "export the model as model.safetensors with the program that created it".to_owned()
}

/// Returns the files in the list of shards.
fn shards(folder: &Path, index: &str) -> Result<Vec<PathBuf>> {
    let index = folder.join(index);
    let bad = |why: String| {
        let path = index.display();
        let message = format!("the list of weight files cannot be used: {why}: {path}");
        Error::new(ErrorKind::Config, message)
            .hint("fetch the model again, or save it again with save_pretrained")
    };
    let text = regular_file::read(&index, SMALL)
        .map_err(|error| Error::io("read the list of weight files", &index, &error))?;
    let json: Value = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let map = json["weight_map"]
        .as_object()
        .ok_or_else(|| bad("it has no weight_map".to_owned()))?;
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        // A shard must be a file in this folder.
        match shard.as_str() {
            Some(name) if !name.contains(['/', '\\']) && !matches!(name, "" | "." | "..") => {
                shards.insert(name);
            }
            _ => {
                return Err(bad(format!(
                    "its entry for {tensor} is {shard}, which is not a file name"
                )));
            }
        }
    }
    if shards.is_empty() {
        return Err(bad("its weight_map is empty".to_owned()));
    }
    let files: Vec<PathBuf> = shards.into_iter().map(|name| folder.join(name)).collect();
    match files.iter().find(|file| !file.exists()) {
        Some(missing) => {
            let name = missing.file_name().unwrap_or_default().to_string_lossy();
            Err(bad(format!("{name} is missing")))
        }
        None => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn folder(files: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, "x").expect("written");
        }
        folder
    }

    #[test]
    fn weights_of_any_format_are_recognized_by_name() {
        for name in [
            "pytorch_model-00001-of-00002.bin",
            "tf_model.h5",
            "flax_model.msgpack",
            "model.Q4_K.gguf",
            "consolidated.00.pth",
            "model.pt",
            "model.ckpt",
            "model.ckpt.index",
            "model.ckpt-1000.meta",
            "model-7.data-00000-of-00001",
            "model.onnx",
            "rust_model.ot",
            "adapter_model.bin",
            "adapter_model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.fp16.safetensors",
            "model.safetensors.part",
            "MODEL.SAFETENSORS",
            "saved_model.pb",
            "64.tflite",
            "weights.npz",
            "__0_0.distcp",
            "onnx/decoder_model.onnx",
            "original/consolidated.00.pth",
        ] {
            if let Some((_, file)) = name.split_once('/') {
                assert!(is_weights(file), "{name}");
            } else {
                assert!(is_weights(name), "{name}");
            }
            let folder = folder(&["config.json", "tokenizer.json", name]);
            let error = WeightFiles::find(folder.path()).expect_err(name);
            assert!(error.message().contains(name), "{error}");
            let hint = error.hint_text().expect("a hint");
            assert!(hint.contains("config.json"), "{hint}");
        }
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer.model",
            "vocab.json",
            "merges.txt",
            "vocab.bpe",
            "README.md",
            ".gitattributes",
            "chat_template.jinja",
            "bin",
            "special_tokens_map.json",
            "events.out.tfevents.1",
            "LICENSE",
            "trainer_state.json",
        ] {
            assert!(!is_weights(name), "{name}");
            let folder = folder(&["config.json", name]);
            assert_eq!(WeightFiles::find(folder.path()).expect(name), None);
        }
    }

    #[test]
    fn the_whole_file_comes_first_and_the_ignored_list_is_reported() {
        let folder = folder(&["model.safetensors"]);
        let whole = WeightFiles::find(folder.path())
            .expect("found")
            .expect("weights");
        assert_eq!(whole.files, [folder.path().join("model.safetensors")]);
        assert_eq!(whole.ignored, None);
        let index = r#"{"weight_map":{"w":"x.safetensors"}}"#;
        fs::write(folder.path().join(INDEX), index).expect("written");
        let both = WeightFiles::find(folder.path())
            .expect("found")
            .expect("weights");
        assert_eq!(both.files, whole.files);
        assert!(both.ignored.expect("told").contains(INDEX));
    }

    #[test]
    fn a_list_must_name_existing_files_in_its_folder() {
        let folder = folder(&["a.safetensors", "b.safetensors"]);
        let find = |index: &str| {
            fs::write(folder.path().join(INDEX), index).expect("written");
            WeightFiles::find(folder.path())
        };
        let good =
            r#"{"weight_map":{"v":"b.safetensors","w":"a.safetensors","x":"b.safetensors"}}"#;
        let files = find(good).expect("good").expect("weights").files;
        assert_eq!(
            files,
            ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name))
        );
        for (bad, why) in [
            (
                r#"{"weight_map":{"w":"../a.safetensors"}}"#,
                "is not a file name",
            ),
            (r#"{"weight_map":{"w":"/dev/zero"}}"#, "is not a file name"),
            (r#"{"weight_map":{"w":".."}}"#, "is not a file name"),
            (r#"{"weight_map":{"w":7}}"#, "is not a file name"),
            (
                r#"{"weight_map":{"w":"c.safetensors"}}"#,
                "c.safetensors is missing",
            ),
            (r#"{"weight_map":{}}"#, "is empty"),
            ("{}", "it has no weight_map"),
            ("[", "cannot be used"),
        ] {
            let error = find(bad).expect_err(bad);
            assert!(error.message().contains(why), "{error}");
        }
    }

    #[test]
    fn a_broken_link_is_not_an_absent_file() {
        let folder = folder(&["config.json"]);
        symlink("../../blobs/ab", folder.path().join("model.safetensors")).expect("linked");
        assert!(WeightFiles::find(folder.path()).expect("found").is_some());
    }
}
