//! Cases 3 to 21: what a leaf says.

use rcgen::OtherNameValue;

use super::*;

/// The twin is the leaf that the CA would issue.
fn bent(
    mesh: &Mesh,
    number: u8,
    what: &'static str,
    label: &'static str,
    bend: impl FnOnce(&mut CertificateParams),
) -> Case {
    let (refused, twin) = (mesh.issues(bend), mesh.issues(|_| {}));
    Case { number, what, label, roles: BOTH, refused, twin }
}

fn other_name(text: &str) -> SanType {
    SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], OtherNameValue::Utf8String(text.into())))
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// An extension beside those that rcgen writes.
fn extension(oid: &[u64], content: &[u8], critical: bool) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

pub(super) fn names(mesh: &Mesh) -> Vec<Case> {
    let foreign = "https://example.org/";
    let named =
        |number, what, names: Vec<SanType>| bent(mesh, number, what, "uri_count", |p| p.subject_alt_names = names);
    let two_raw = |bytes: &[u8]| {
        bent(mesh, 7, "an ID and a URI that is no text", "uri_count", |p| {
            p.subject_alt_names.clear();
            p.custom_extensions = vec![raw_names(&[(6, WEB.as_bytes()), (6, bytes)])];
        })
    };
    vec![
        named(5, "two IDs", vec![uri(WEB), uri(CLIENT)]),
        named(5, "one ID twice", vec![uri(WEB), uri(WEB)]),
        named(6, "an ID and another URI", vec![uri(WEB), uri(foreign)]),
        named(6, "another URI and an ID", vec![uri(foreign), uri(WEB)]),
        two_raw(&[0xff, 0xfe]),
        two_raw(&[]),
        bent(mesh, 8, "the ID is in the common name only", "uri_count", |p| {
            p.subject_alt_names.clear();
            p.distinguished_name = DistinguishedName::new();
            p.distinguished_name.push(DnType::CommonName, WEB);
        }),
        bent(mesh, 8, "the subject has a common name", "subject", |p| {
            p.distinguished_name.push(DnType::CommonName, WEB);
        }),
        named(9, "the ID is a DNS name", vec![dns(WEB)]),
        named(9, "the ID is another name", vec![other_name(WEB)]),
        Case {
            refused: mesh.issues(|p| p.subject_alt_names = vec![dns("web.example"), uri(WEB), uri(WEB)]),
            twin: mesh.issues(|p| p.subject_alt_names = vec![dns("web.example"), uri(WEB), other_name(CLIENT)]),
            ..named(10, "names beside the ID", Vec::new())
        },
        Case {
            refused: mesh.issues(|p| p.subject_alt_names = vec![uri("https://test.mantle/ns/shop/sa/web")]),
            label: "spiffe_id",
            ..named(20, "a URI that is no ID", Vec::new())
        },
    ]
}

pub(super) fn uses(mesh: &Mesh) -> Vec<Case> {
    let usage = |number, what, usages: &'static [KeyUsagePurpose]| {
        bent(mesh, number, what, "key_usage", |p| p.key_usages = usages.to_vec())
    };
    let purpose = |what, roles, purpose: ExtendedKeyUsagePurpose| Case {
        roles,
        ..bent(mesh, 16, what, "purpose", |p| p.extended_key_usages = vec![purpose])
    };
    let own = |content: &'static [u8], critical| {
        let extension = extension(&[2, 5, 29, 15], content, critical);
        mesh.issues(|p| {
            p.key_usages.clear();
            p.custom_extensions = vec![extension];
        })
    };
    let unknown = [1, 3, 6, 1, 4, 1, 99999, 1];
    vec![
        bent(mesh, 11, "an authority", "authority", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        Case {
            twin: mesh.issues(|p| p.is_ca = IsCa::NoCa),
            ..bent(mesh, 12, "without basic constraints", "authority", |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            })
        },
        usage(13, "no key usage", &[]),
        usage(14, "key encipherment only", &[KeyUsagePurpose::KeyEncipherment]),
        usage(15, "keyCertSign", &[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign]),
        usage(15, "cRLSign", &[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign]),
        Case {
            refused: own(&[0x03, 2, 7, 0x80], false),
            twin: own(&[0x03, 2, 7, 0x80], true),
            ..usage(13, "key usage that is not critical", &[])
        },
        purpose("a server's, as client", &[Role::Client], ExtendedKeyUsagePurpose::ServerAuth),
        purpose("a client's, as server", &[Role::Server], ExtendedKeyUsagePurpose::ClientAuth),
        purpose("for signing code", BOTH, ExtendedKeyUsagePurpose::CodeSigning),
        Case {
            twin: mesh.issues(|p| p.extended_key_usages.clear()),
            ..bent(mesh, 17, "an empty purpose, and none", "empty_purpose", |p| {
                p.extended_key_usages.clear();
                p.custom_extensions = vec![extension(&[2, 5, 29, 37], &[0x30, 0], false)];
            })
        },
        bent(mesh, 18, "names twice", "duplicate_extension", |p| {
            p.custom_extensions = vec![raw_names(&[(6, WEB.as_bytes())])];
        }),
        bent(mesh, 18, "key usage twice", "duplicate_extension", |p| {
            p.custom_extensions = vec![extension(&[2, 5, 29, 15], &[0x03, 2, 7, 0x80], true)];
        }),
        Case {
            twin: mesh.issues(|p| p.custom_extensions = vec![extension(&unknown, &[5, 0], false)]),
            ..bent(mesh, 18, "an unknown extension twice", "duplicate_extension", |p| {
                p.custom_extensions = vec![extension(&unknown, &[5, 0], false), extension(&unknown, &[5, 0], false)];
            })
        },
        Case {
            twin: mesh.issues(|p| p.custom_extensions = vec![extension(&unknown, &[5, 0], false)]),
            ..bent(mesh, 19, "unknown and critical", "critical_extension", |p| {
                p.custom_extensions = vec![extension(&unknown, &[5, 0], true)];
            })
        },
    ]
}

pub(super) fn identities(mesh: &Mesh) -> Vec<Case> {
    let called = |number, text: &str| {
        bent(mesh, number, "an ID that is written otherwise", "spiffe_id", |p| {
            p.subject_alt_names.clear();
            p.custom_extensions = vec![raw_names(&[(6, text.as_bytes())])];
        })
    };
    let of_length = |length: usize| format!("spiffe://{DOMAIN}/{}", "a".repeat(length - 10 - DOMAIN.len()));
    let written = [
        "spiffe://test.mantle//ns/shop",
        "spiffe://test.mantle/ns/shop/sa/web/",
        "spiffe://test.mantle/ns/./shop",
        "spiffe://test.mantle/ns/../shop",
        "spiffe://test.mantle/ns%2Fshop",
        "spiffe://test.mantle/ns/shop?sa=web",
        "spiffe://test.mantle/ns/shop#web",
        "spiffe://user@test.mantle/ns/shop/sa/web",
        "spiffe://test.mantle:443/ns/shop/sa/web",
        "spiffe://TEST.mantle/ns/shop/sa/web",
        "SPIFFE://test.mantle/ns/shop/sa/web",
        "spiffe://test.mantle/ns/shop/sa/web\0",
        "spiffe://test\u{ff0e}mantle/ns/shop/sa/web",
        "spiffe:///ns/shop/sa/web",
        "",
    ];
    let mut cases: Vec<Case> = written.into_iter().map(|text| called(21, text)).collect();
    cases.push(called(20, "spiffe://test.mantle"));
    cases.push(called(20, "spiffe://test.mantle/"));
    let twin = mesh.issues(|p| p.subject_alt_names = vec![uri(&of_length(2048))]);
    cases.push(Case { twin, ..called(21, &of_length(2049)) });
    cases
}

pub(super) fn lives(mesh: &Mesh) -> Vec<Case> {
    vec![
        bent(mesh, 3, "expired", "expired", |p| p.not_after = hours(-1) + Duration::minutes(1)),
        bent(mesh, 4, "not yet valid", "not_yet_valid", |p| p.not_before = hours(1) - Duration::minutes(1)),
        bent(mesh, 4, "ends before it begins", "malformed", |p| {
            (p.not_before, p.not_after) = (hours(1), hours(-1));
        }),
    ]
}
