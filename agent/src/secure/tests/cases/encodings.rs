//! Cases 22 and 23: how a leaf is written, and how strong it is.

use rcgen::PKCS_ECDSA_P384_SHA384;

use super::super::asn1::{ALGORITHM, SERIAL, SUBJECT, VALIDITY, VERSION};
use super::*;

fn good(mesh: &Mesh) -> CertificateDer<'static> {
    mesh.root.issue(&Bent::leaf(WEB, "uid-web")).0
}

/// The twin has been signed anew too.
fn rewritten(
    mesh: &Mesh,
    (number, what, label): (u8, &'static str, &'static str),
    bend: impl FnOnce(&mut Vec<Vec<u8>>),
) -> Case {
    let leaf = good(mesh);
    let refused = mesh.shows(signed_anew(&leaf, &mesh.root, bend));
    let twin = mesh.shows(signed_anew(&leaf, &mesh.root, |_| {}));
    Case { number, what, label, roles: BOTH, refused, twin }
}

/// The same value with a length of one byte more than it needs.
fn wider(der: &[u8]) -> Vec<u8> {
    match der[1] {
        0x82 => [&[der[0], 0x83, 0], &der[2..]].concat(),
        0x81 => [&[der[0], 0x82, 0], &der[2..]].concat(),
        short => [&[der[0], 0x81, short], &der[2..]].concat(),
    }
}

/// A subject that names the pod, and more in the same place.
fn attribute(more: &[&[u8]]) -> Vec<u8> {
    let attribute = [&[0x06, 3, 0x55, 4, 5], value(0x13, &[b"uid-web"]).as_slice(), &more.concat()].concat();
    value(0x30, &[&value(0x31, &[&value(0x30, &[&attribute])])])
}

pub(super) fn lengths(mesh: &Mesh) -> Vec<Case> {
    let leaf = good(mesh);
    let around = |what, refused: Vec<u8>| Case {
        number: 22,
        what,
        label: "malformed",
        roles: BOTH,
        refused: mesh.shows(refused.into()),
        twin: mesh.shows(leaf.clone()),
    };
    let inside = |what, bend: fn(&mut Vec<Vec<u8>>)| rewritten(mesh, (22, what, "malformed"), bend);
    let named = |names: &[(u8, &[u8])]| {
        let names = raw_names(names);
        mesh.issues(|p| {
            p.subject_alt_names.clear();
            p.custom_extensions = vec![names];
        })
    };
    let own_usage = |content: &[u8]| {
        let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], content.to_vec());
        usage.set_criticality(true);
        mesh.issues(|p| {
            p.key_usages.clear();
            p.custom_extensions = vec![usage];
        })
    };
    let indefinite = [&[0x30, 0x80], &leaf[4..], &[0, 0]].concat();
    vec![
        around("a byte behind it", [leaf.as_ref(), &[0]].concat()),
        around("another certificate behind it", [leaf.as_ref(), &leaf].concat()),
        around("nothing", Vec::new()),
        around("cut off", leaf[..leaf.len() - 1].to_vec()),
        around("a length with a byte too many", wider(&leaf)),
        around("no length", indefinite),
        inside("a length with a byte too many inside", |parts| parts[VALIDITY] = wider(&parts[VALIDITY])),
        inside("a number with a byte too many", |parts| parts[SERIAL] = value(0x02, &[&[0, 1]])),
        inside("something behind the times", |parts| {
            let mut times = asn1::parts(&parts[VALIDITY]);
            times.push(vec![0x05, 0]);
            parts[VALIDITY] = value(0x30, &[&times.concat()]);
        }),
        inside("something behind the name of an attribute", |parts| parts[SUBJECT] = attribute(&[&[0x05, 0]])),
        inside("something behind the extensions", |parts| parts.push(vec![0x05, 0])),
        Case {
            refused: own_usage(&[0x03, 2, 7, 0x80, 0]),
            twin: own_usage(&[0x03, 2, 7, 0x80]),
            ..around("a byte behind the key usage", Vec::new())
        },
        Case {
            refused: own_usage(&[0x03, 2, 7, 0xff]),
            twin: own_usage(&[0x03, 2, 7, 0x80]),
            ..around("key usage with bits that do not count", Vec::new())
        },
        Case {
            refused: named(&[(6, WEB.as_bytes()), (2, "web.ex\u{e4}mple".as_bytes())]),
            twin: named(&[(6, WEB.as_bytes()), (2, b"web.example")]),
            ..around("a DNS name that is not ASCII", Vec::new())
        },
        Case {
            refused: named(&[(6, WEB.as_bytes()), (9, b"what")]),
            twin: named(&[(6, WEB.as_bytes())]),
            ..around("a name of no kind", Vec::new())
        },
        Case {
            refused: named(&[(6, &[0xff])]),
            twin: named(&[(6, WEB.as_bytes())]),
            ..around("the one URI is no text", Vec::new())
        },
        rewritten(mesh, (22, "version 2", "version"), |parts| parts[VERSION] = value(0xa0, &[&[0x02, 1, 1]])),
    ]
}

pub(super) fn serials(mesh: &Mesh) -> Vec<Case> {
    let serial = |what, content: &'static [u8]| {
        rewritten(mesh, (22, what, "serial"), |parts| parts[SERIAL] = value(0x02, &[content]))
    };
    let longest = signed_anew(&good(mesh), &mesh.root, |parts| parts[SERIAL] = value(0x02, &[&[0x7f; 20]]));
    vec![
        serial("a negative serial number", &[0x80; 16]),
        serial("the serial number 0", &[0]),
        Case { twin: mesh.shows(longest), ..serial("a serial number of 21 bytes", &[0x7f; 21]) },
    ]
}

pub(super) fn strength(mesh: &Mesh) -> Vec<Case> {
    let keyed = |key: Vec<u8>| mesh.shows(signed_anew(&good(mesh), &mesh.root, |parts| parts[asn1::KEY] = key));
    let sha1 = value(0x30, &[&[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]]);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = Bent::leaf(WEB, "uid-web").params.signed_by(&key, &mesh.root.issuer).unwrap().der().clone();
    let between = mesh.root.below(&[KeyUsagePurpose::KeyCertSign]);
    let leaf = between.issue(&Bent::leaf(WEB, "uid-web")).0;
    let weak = |key: Vec<u8>| signed_anew(&between.certificate, &mesh.root, |parts| parts[asn1::KEY] = key);
    let through = |authority| Shown { between: vec![authority], ..mesh.shows(leaf.clone()) };
    let authority = |what, key: Vec<u8>| Case {
        number: 23,
        what,
        label: "weak_key",
        roles: BOTH,
        refused: through(weak(key)),
        twin: through(between.certificate.clone()),
    };
    vec![
        Case {
            number: 23,
            what: "a key on P-224, and one on P-384",
            label: "weak_key",
            roles: BOTH,
            refused: keyed(p224_key()),
            twin: mesh.shows(p384),
        },
        Case {
            number: 23,
            what: "an RSA key of 1024 bits, and one of 2048",
            label: "weak_key",
            roles: BOTH,
            refused: keyed(rsa_key(1024)),
            twin: keyed(rsa_key(2048)),
        },
        authority("an authority with a key on P-224", p224_key()),
        authority("an authority with an RSA key of 1024 bits", rsa_key(1024)),
        rewritten(mesh, (23, "signed with SHA-1", "weak_signature"), |parts| parts[ALGORITHM] = sha1),
    ]
}
