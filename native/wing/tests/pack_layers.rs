//! Image archives through `wing pack image`: layers, whiteouts, configuration, and all that can be wrong with them.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod pack_common;

use std::collections::BTreeMap;

use pack_common::{
    gzip, image, image_fault, pack, sha256,
    tar::Tar,
    tree::{Mounted, contents, fsck},
    xz, zstd,
};
use serde_json::{Value, json};

/// A configuration for layers of these plain tars.
fn config(layers: &[Vec<u8>], run: &Value) -> Vec<u8> {
    let digests: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": run,
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    config.to_string().into_bytes()
}

/// What `docker save` wrote before version 25: the manifest last, a folder a layer.
fn saved(layers: &[Vec<u8>], run: &Value) -> Tar {
    let config = config(layers, run);
    let config_name = format!("{}.json", sha256(&config));
    let mut archive = Tar::new().file(&config_name, &config);
    let mut names = Vec::new();
    for layer in layers {
        let name = sha256(&[b"id", &layer[..]].concat());
        archive = archive
            .folder(&format!("{name}/"))
            .file(&format!("{name}/VERSION"), "1.0")
            .file(&format!("{name}/layer.tar"), layer);
        names.push(format!("{name}/layer.tar"));
    }
    let manifest = json!([{ "Config": config_name, "RepoTags": ["test:1"], "Layers": names }]);
    archive.file("manifest.json", manifest.to_string())
}

/// Blobs of an OCI layout.
#[derive(Default)]
struct Oci {
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Oci {
    fn blob(&mut self, bytes: Vec<u8>, kind: &str) -> Value {
        let digest = sha256(&bytes);
        let descriptor =
            json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        self.blobs.insert(format!("blobs/sha256/{digest}"), bytes);
        descriptor
    }

    fn manifest(
        &mut self,
        layers: &[Vec<u8>],
        packed: impl Fn(&[u8]) -> Vec<u8>,
        run: &Value,
    ) -> Value {
        let config = self.blob(
            config(layers, run),
            "application/vnd.oci.image.config.v1+json",
        );
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob(packed(layer), "application/vnd.oci.image.layer.v1.tar+gzip"))
            .collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.blob(
            manifest.to_string().into_bytes(),
            "application/vnd.oci.image.manifest.v1+json",
        )
    }

    fn archive(&self, manifests: &[Value]) -> Vec<u8> {
        let mut archive = Tar::new().folder("blobs/").folder("blobs/sha256/");
        for (name, bytes) in &self.blobs {
            archive = archive.pax(&[("path", name.as_bytes())]).file("x", bytes);
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        archive
            .file("index.json", index.to_string())
            .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
            .end()
    }
}

fn platform(descriptor: &Value, os: &str, architecture: &str) -> Value {
    let mut descriptor = descriptor.clone();
    descriptor["platform"] = json!({ "os": os, "architecture": architecture });
    descriptor
}

#[track_caller]
fn tree(archive: &[u8]) -> (Value, Option<BTreeMap<String, Vec<u8>>>) {
    let folder = tempfile::tempdir().unwrap();
    let (path, told) = image(folder.path(), archive);
    fsck(&path);
    (told, contents(&path))
}

fn names(tree: &BTreeMap<String, Vec<u8>>) -> Vec<&str> {
    tree.keys().map(String::as_str).collect()
}

fn run() -> Value {
    json!({
        "Entrypoint": ["/bin/app"], "Cmd": ["serve"], "Env": ["PATH=/bin", "A=b"], "User": "1000:1000",
        "WorkingDir": "/srv", "StopSignal": "SIGQUIT", "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
        "Labels": { "ignored": "yes" },
    })
}

#[test]
fn a_saved_image_gives_its_tree_and_its_configuration() {
    let layers = [
        Tar::new()
            .folder("etc")
            .file("etc/a", "1")
            .file("etc/b", "1")
            .file("big", [1; 50_000])
            .end(),
        Tar::new().file("etc/a", "2").file("big", [2; 60_000]).end(),
    ];

    let (told, tree) = tree(&saved(&layers, &run()).end());

    assert_eq!(told["format"], "docker");
    assert_eq!(
        told["config"],
        json!({
            "entrypoint": ["/bin/app"], "cmd": ["serve"], "env": ["PATH=/bin", "A=b"], "user": "1000:1000",
            "working_dir": "/srv", "stop_signal": "SIGQUIT", "exposed_ports": ["53/udp", "80/tcp"],
        })
    );
    if let Some(tree) = tree {
        assert_eq!(names(&tree), ["big", "etc", "etc/a", "etc/b"]);
        assert_eq!(tree["etc/a"], b"2");
        assert_eq!(tree["big"], [2; 60_000]);
    }
}

#[test]
fn an_oci_layout_gives_the_same_whatever_its_layers_are_packed_with() {
    let layers = [
        Tar::new().file("a", "1").end(),
        Tar::new().file("b", "2").end(),
    ];
    let mut digests = Vec::new();
    for packed in [|data: &[u8]| data.to_vec(), gzip, xz, zstd] {
        let mut oci = Oci::default();
        let manifest = oci.manifest(&layers, packed, &run());

        let (told, _) = tree(&oci.archive(&[manifest]));

        assert_eq!(told["format"], "oci");
        assert_eq!(told["config"]["entrypoint"], json!(["/bin/app"]));
        digests.push(told["erofs_sha256"].clone());
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[test]
fn whiteouts_hide_lower_layers_and_nothing_else() {
    let layers = [
        Tar::new()
            .file("gone", "1")
            .file("tree/x/y", "1")
            .file("opaque/old", "1")
            .file("opaque/sub/old", "1")
            .file("opaque/kept/old", "1")
            .file("linked", "1")
            .symlink("lib", "usr/lib")
            .file("usr/lib/so", "1")
            .end(),
        Tar::new()
            .file(".wh.gone", "")
            .file(".wh.tree", "")
            .file("opaque/kept/new", "2")
            .file("opaque/new", "2")
            .hard_link("opaque/link", "linked")
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/later", "2")
            .file(".wh.absent", "")
            .file("lib/.wh.so", "")
            .file("both", "2")
            .file(".wh.both", "")
            .file(".wh..wh.plnk", "")
            .end(),
    ];

    let (_, tree) = tree(&saved(&layers, &json!({})).end());

    if let Some(tree) = tree {
        let expected = [
            "both",
            "lib",
            "linked",
            "opaque",
            "opaque/kept",
            "opaque/kept/new",
            "opaque/later",
            "opaque/link",
            "opaque/new",
            "usr",
            "usr/lib",
        ];
        assert_eq!(names(&tree), expected);
    }
}

#[test]
fn layers_by_link_and_the_names_of_other_tools_are_found() {
    let layer = Tar::new().file("a", "1").end();
    let config = config(&[layer.clone(), layer.clone()], &json!(null));
    let (first, second) = ("1".repeat(64), "2".repeat(64));
    let manifest = json!([{
        "Config": format!("sha256:{}", sha256(&config)),
        "Layers": [format!("{first}.tar"), format!("{second}/layer.tar")],
    }]);
    let archive = Tar::new()
        .file("manifest.json", manifest.to_string())
        .file(&format!("{first}.tar"), &layer)
        .symlink(&format!("{second}/layer.tar"), &format!("../{first}.tar"))
        .file(&format!("sha256:{}", sha256(&config)), config)
        .end();

    let (told, _) = tree(&archive);

    assert_eq!(told["format"], "docker");
    assert_eq!(told["config"]["user"], Value::Null);
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let mut oci = Oci::default();
    let ours = oci.manifest(&[Tar::new().file("a", "").end()], gzip, &run());
    let other = oci.manifest(&[Tar::new().file("b", "").end()], gzip, &run());
    let mut proof = platform(&other, "unknown", "unknown");
    proof["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let index = json!({ "manifests": [platform(&ours, "linux", "amd64"), platform(&other, "linux", "arm64"), proof] });
    let index = oci.blob(
        index.to_string().into_bytes(),
        "application/vnd.oci.image.index.v1+json",
    );

    let (_, tree) = tree(&oci.archive(&[index]));

    if let Some(tree) = tree {
        assert_eq!(names(&tree), ["a"]);
    }
}

#[test]
fn a_root_tree_that_begins_like_an_image_is_one_still() {
    let archive = Tar::new()
        .folder("./")
        .folder("./blobs")
        .file("./blobs/sha256/x", "1")
        .file("./bin/sh", "2")
        .end();

    let (told, tree) = tree(&archive);

    assert_eq!(told["format"], "rootfs");
    if let Some(tree) = tree {
        assert_eq!(
            names(&tree),
            ["bin", "bin/sh", "blobs", "blobs/sha256", "blobs/sha256/x"]
        );
        assert_eq!(tree["blobs/sha256/x"], b"1");
    }
}

#[test]
fn each_broken_image_archive_has_its_code() {
    let layer = Tar::new().file("a", "1").end();
    let layers = std::slice::from_ref(&layer);
    let mut oci = Oci::default();
    let ours = oci.manifest(layers, gzip, &run());
    let other = oci.manifest(&[Tar::new().file("b", "").end()], gzip, &run());
    let arm = {
        let mut config: Value = serde_json::from_slice(&config(layers, &run())).unwrap();
        config["architecture"] = json!("arm64");
        config
    };
    let named = |manifest: Value| Tar::new().file("manifest.json", manifest.to_string());
    let hash = "3".repeat(64);
    let broken = {
        let name = ours["digest"]
            .as_str()
            .unwrap()
            .replace("sha256:", "blobs/sha256/");
        let mut oci = Oci {
            blobs: oci.blobs.clone(),
        };
        oci.blobs.get_mut(&name).unwrap().push(b' ');
        oci
    };
    let escape = Tar::new().file("a/.wh...", "").end();
    let nested = {
        let mut oci = Oci::default();
        let mut index = oci.manifest(layers, gzip, &run());
        for _ in 0..6 {
            let bytes = json!({ "manifests": [index] }).to_string().into_bytes();
            index = oci.blob(bytes, "application/vnd.oci.image.index.v1+json");
        }
        oci.archive(&[index])
    };
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("image_manifest_missing", "blobs only", Tar::new().folder("blobs").end()),
        ("image_manifest_invalid", "no JSON", Tar::new().file("manifest.json", "{").end()),
        ("image_manifest_invalid", "no image", named(json!([])).end()),
        ("image_manifest_invalid", "a deep index", nested),
        ("image_layer_missing", "no configuration", named(json!([{ "Config": "x", "Layers": [] }])).end()),
        ("image_layer_missing", "a name that leads out", named(json!([{ "Config": "../../etc/passwd", "Layers": [] }])).end()),
        ("image_layer_missing", "a layer that is a loop", {
            let config = config(layers, &run());
            named(json!([{ "Config": format!("{hash}.json"), "Layers": [format!("{hash}/layer.tar")] }]))
                .file(&format!("{hash}.json"), config)
                .symlink(&format!("{hash}/layer.tar"), "layer.tar")
                .end()
        }),
        ("image_manifest_invalid", "fewer digests than layers", {
            named(json!([{ "Config": format!("{hash}.json"), "Layers": ["a", "b"] }]))
                .file(&format!("{hash}.json"), config(layers, &run()))
                .end()
        }),
        ("digest_mismatch", "another layer than the configuration says", {
            named(json!([{ "Config": format!("{hash}.json"), "Layers": [format!("{hash}/layer.tar")] }]))
                .file(&format!("{hash}.json"), config(&[Tar::new().file("b", "").end()], &run()))
                .file(&format!("{hash}/layer.tar"), &layer)
                .end()
        }),
        ("digest_mismatch", "a manifest that was changed", broken.archive(std::slice::from_ref(&ours))),
        ("image_platform_missing", "another machine's", {
            named(json!([{ "Config": format!("{hash}.json"), "Layers": [] }])).file(&format!("{hash}.json"), arm.to_string()).end()
        }),
        ("image_platform_missing", "an index of other machines", oci.archive(&[platform(&ours, "linux", "arm64")])),
        ("image_ambiguous", "two images", oci.archive(&[ours, other])),
        ("image_ambiguous", "two saved images", named(json!([
            { "Config": "a", "RepoTags": ["a:1"], "Layers": [] }, { "Config": "b", "RepoTags": null, "Layers": [] }
        ])).end()),
        ("entry_path_invalid", "a whiteout of the folder above", saved(&[escape], &run()).end()),
        ("archive_truncated", "a layer that ends early", saved(&[layer[..700].to_vec()], &run()).end()),
    ];
    for (code, what, archive) in cases {
        assert_eq!(image_fault(&archive), code, "{what}");
    }
}

#[test]
fn layers_need_a_scratch_file_and_root_trees_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = |archive: &[u8]| pack(&["image", "--out-fd", "4"], archive, &[(4, &out)]);

    assert_eq!(
        run(&saved(&[], &json!({})).end()).fault(),
        "scratch_required"
    );
    assert_eq!(
        run(&Tar::new().file("a", "").end()).told()["format"],
        "rootfs"
    );
}

#[test]
fn a_million_whiteouts_of_one_folder_are_no_hardship() {
    let mut lower = Tar::new();
    let mut upper = Tar::new();
    for number in 0..20_000 {
        lower = lower.file(&format!("d/{number}"), "");
        upper = upper
            .file("d/.wh..wh..opq", "")
            .file(&format!("d/new{number}"), "");
    }
    let archive = saved(&[lower.end(), upper.end()], &json!({})).end();
    let begin = std::time::Instant::now();

    let (_, tree) = tree(&archive);

    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
    if let Some(tree) = tree {
        assert_eq!(tree.len(), 20_001);
    }
}

/// An image of one layer as Jib writes it: no name says what it is.
fn plain_names(layer: &[u8]) -> [(String, Vec<u8>); 3] {
    let name = format!("{}.tar.gz", sha256(&gzip(layer)));
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["test:1"], "Layers": [name] }]);
    [
        (name, gzip(layer)),
        ("config.json".into(), config(&[layer.to_vec()], &run())),
        ("manifest.json".into(), manifest.to_string().into_bytes()),
    ]
}

fn archive_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let archive = files.iter().fold(Tar::new(), |archive, (name, bytes)| {
        archive.pax(&[("path", name.as_bytes())]).file("x", bytes)
    });
    archive.end()
}

#[test]
fn a_manifest_makes_an_image_whatever_lies_beside_it() {
    let layer = Tar::new().file("of-the-layer", "1").end();
    let jib = plain_names(&layer);
    let renamed = |from: &str, to: &str| -> Vec<(String, Vec<u8>)> {
        let swap = |text: &str| text.replace(from, to);
        jib.iter()
            .map(|(name, bytes)| match &**name {
                "manifest.json" => {
                    let text = String::from_utf8(bytes.clone()).unwrap();
                    (name.clone(), swap(&text).into_bytes())
                }
                _ => (swap(name), bytes.clone()),
            })
            .collect()
    };
    let oci = || {
        let mut oci = Oci::default();
        let manifest = oci.manifest(std::slice::from_ref(&layer), gzip, &run());
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        let mut files: Vec<(String, Vec<u8>)> = oci.blobs.into_iter().collect();
        files.push(("index.json".into(), index.to_string().into_bytes()));
        files
    };
    let with = |mut files: Vec<(String, Vec<u8>)>, at: usize, name: &str| {
        files.insert(at, (name.into(), b"not of the image".to_vec()));
        files
    };
    let reversed = |mut files: Vec<(String, Vec<u8>)>| {
        files.reverse();
        files
    };
    let dotted = |files: Vec<(String, Vec<u8>)>| {
        let dot = |(name, bytes)| (format!("./{name}"), bytes);
        files.into_iter().map(dot).collect::<Vec<_>>()
    };
    let cases = [
        ("docker", jib.to_vec(), "Jib"),
        ("docker", reversed(jib.to_vec()), "the manifest first"),
        ("docker", dotted(jib.to_vec()), "names with ./"),
        ("docker", with(jib.to_vec(), 0, "README.md"), "a file first"),
        (
            "docker",
            with(jib.to_vec(), 3, "bin/sh"),
            "a file of a root tree last",
        ),
        (
            "docker",
            with(jib.to_vec(), 1, ".DS_Store"),
            "a file between",
        ),
        (
            "docker",
            renamed("config.json", "etc/app"),
            "a configuration in a folder",
        ),
        ("docker", renamed(".tar.gz", ""), "a layer without a suffix"),
        (
            "docker",
            with(oci(), 0, "a")
                .into_iter()
                .chain(jib.to_vec())
                .collect(),
            "both",
        ),
        ("oci", oci(), "a layout without its mark"),
        ("oci", with(oci(), 0, "README"), "a file beside a layout"),
        (
            "oci",
            with(oci(), 2, "docs/deep/index.html"),
            "a folder beside a layout",
        ),
        (
            "oci",
            with(reversed(oci()), 1, "._index.json"),
            "the index first",
        ),
        (
            "oci",
            with(dotted(oci()), 4, "manifest.json"),
            "a manifest that is none",
        ),
    ];
    for (format, files, what) in cases {
        let (told, tree) = tree(&archive_of(&files));

        assert_eq!(told["format"], format, "{what}");
        assert_eq!(told["config"]["entrypoint"], json!(["/bin/app"]), "{what}");
        if let Some(tree) = tree {
            assert_eq!(names(&tree), ["of-the-layer"], "{what}");
        }
    }
}

#[test]
fn a_root_tree_is_one_whatever_its_files_are_called() {
    let layer = Tar::new().file("of-the-layer", "1").end();
    let [(blob, bytes), (config, _), (manifest, _)] = plain_names(&layer);
    let text = |text: &str| text.as_bytes().to_vec();
    let cases = [
        vec![
            ("manifest.json".into(), text(r#"{"name":"an app"}"#)),
            ("bin/sh".into(), text("#!")),
        ],
        vec![
            ("index.json".into(), text(r#"{"manifests":[]}"#)),
            ("bin/sh".into(), text("#!")),
        ],
        vec![
            ("index.json".into(), text("[]")),
            ("oci-layout".into(), text("{}")),
            ("a".into(), text("1")),
        ],
        vec![
            (
                manifest,
                text(r#"[{"Config":"gone.json","Layers":["gone.tar"]}]"#),
            ),
            ("bin/sh".into(), text("#!")),
        ],
        vec![
            (blob.clone(), bytes.clone()),
            (config.clone(), text("{}")),
            ("bin/sh".into(), text("#!")),
        ],
        vec![
            ("bin/sh".into(), text("#!")),
            ("usr/manifest.json".into(), text("[]")),
            (blob, bytes),
        ],
        vec![
            ("blobs/sha256/x".into(), text("1")),
            (config, text("{}")),
            ("a.tar".into(), text("1")),
        ],
    ];
    for files in cases {
        let (told, tree) = tree(&archive_of(&files));

        assert_eq!(told["format"], "rootfs", "{files:?}");
        if let Some(tree) = tree {
            for (name, bytes) in &files {
                assert_eq!(tree[&**name], *bytes);
            }
        }
    }
}

#[test]
fn an_incomplete_image_is_no_root_tree() {
    let layer = Tar::new().file("a", "1").end();
    let jib = plain_names(&layer);
    for lacking in 0..2 {
        let mut files = jib.to_vec();
        files.remove(lacking);
        files.push(("README".into(), Vec::new()));

        assert_eq!(image_fault(&archive_of(&files)), "image_layer_missing");
    }
}

#[test]
fn an_image_and_its_layers_need_no_end_mark() {
    let layer = Tar::new().file("of-the-layer", "1").unended();
    for packed in [|data: &[u8]| data.to_vec(), gzip, xz, zstd] {
        let archive = saved(std::slice::from_ref(&layer), &run()).unended();

        let (told, tree) = tree(&packed(&archive));

        assert_eq!(told["format"], "docker");
        if let Some(tree) = tree {
            assert_eq!(names(&tree), ["of-the-layer"]);
        }
    }
    let mut cut = saved(std::slice::from_ref(&layer), &run()).unended();
    cut.truncate(cut.len() - 512);
    assert_eq!(image_fault(&cut), "archive_truncated");
}

#[test]
fn what_is_no_character_in_a_configuration_is_replaced() {
    let layer = Tar::new().file("a", "1").end();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let run = json!({ "Env": ["A=@1@", "B=@2@"], "Labels": { "@1@": "@2@" } });
    let mut whole = config(std::slice::from_ref(&layer), &run);
    for (mark, bytes) in [(&b"@1@"[..], &b"\xe4\xff"[..]), (b"@2@", br"\ud800")] {
        while let Some(at) = whole.windows(3).position(|window| window == mark) {
            whole.splice(at..at + 3, bytes.iter().copied());
        }
    }
    let manifest = json!([{ "Config": "c", "Layers": ["l"] }]).to_string();
    let archive = Tar::new()
        .file("l", &layer)
        .file("c", &whole)
        .file("manifest.json", manifest)
        .end();

    let (told, _) = tree(&archive);

    let expected = json!(["A=\u{fffd}\u{fffd}", "B=\u{fffd}"]);
    assert_eq!(told["config"]["env"], expected, "{}", text(&whole));
}

#[test]
fn a_sparse_file_of_a_layer_takes_its_data_only() {
    let lower = Tar::new().file("var/log/lastlog", "old").end();
    let upper = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.name", b"var/log/lastlog"),
            ("GNU.sparse.size", b"107374182400"),
            ("GNU.sparse.map", b"0,3,53687091200,5"),
        ])
        .file("x", "newlater")
        .end();
    let begin = std::time::Instant::now();
    let folder = tempfile::tempdir().unwrap();

    let (path, _) = image(folder.path(), &saved(&[lower, upper], &run()).end());

    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    let room = |path: &std::path::Path| {
        use std::os::unix::fs::MetadataExt as _;
        path.metadata().unwrap().blocks() * 512
    };
    assert!(room(&path) < 256 << 10, "{} bytes", room(&path));
    let scratch = room(&folder.path().join("scratch"));
    assert!(scratch < 256 << 10, "{scratch} bytes");
    if let Some(mounted) = Mounted::new(&path) {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::open(mounted.path().join("var/log/lastlog")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 107_374_182_400);
        for (offset, expected) in [
            (0, &b"new\0\0"[..]),
            (53_687_091_199, b"\0later\0"),
            (107_374_182_398, b"\0\0"),
        ] {
            let mut bytes = vec![9; expected.len()];
            file.read_exact_at(&mut bytes, offset).unwrap();
            assert_eq!(bytes, expected, "{offset}");
        }
    }
}

#[test]
fn an_image_archive_may_itself_have_holes() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    let mut contents = vec![0; 5 << 20];
    contents[3 << 20] = 7;
    let layer = Tar::new().file("big", &contents).file("a", "1").end();
    for (name, bytes) in [
        ("layer.tar", &layer),
        ("config.json", &config(std::slice::from_ref(&layer), &run())),
        (
            "manifest.json",
            &json!([{ "Config": "config.json", "Layers": ["layer.tar"] }])
                .to_string()
                .into_bytes(),
        ),
    ] {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::create(files.join(name)).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (at, part) in (0..).zip(bytes.chunks(4096)) {
            if part.iter().any(|&byte| byte != 0) {
                file.write_all_at(part, at * 4096).unwrap();
            }
        }
    }
    for version in ["--sparse-version=0.1", "--sparse-version=1.0"] {
        let output = std::process::Command::new("tar")
            .args(["--format=pax", "-S", version, "-cf", "-", "-C"])
            .arg(&files)
            .arg(".")
            .output()
            .unwrap();
        assert!(output.stdout.len() < 1 << 20);

        let (path, told) = image(folder.path(), &output.stdout);

        assert_eq!(told["format"], "docker");
        fsck(&path);
        // `fsck.erofs --extract` before 1.6 leaves holes out of a file, so the kernel is asked.
        if let Some(mounted) = Mounted::new(&path) {
            assert!(std::fs::read(mounted.path().join("big")).unwrap() == contents);
            assert_eq!(std::fs::read(mounted.path().join("a")).unwrap(), b"1");
        }
    }
}
