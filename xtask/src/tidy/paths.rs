//! The paths that code names: `a::b::c`, also inside `use a::{b, c}` and inside macro arguments.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PathUse {
    /// Its parts, joined by `::`; a glob ends in `*`.
    pub(super) path: String,
    /// The line, counted from 1.
    pub(super) line: usize,
}

/// Every path in `tokens` that has at least two parts, and every single name of a `use` line.
pub(super) fn in_tokens(tokens: TokenStream) -> Vec<PathUse> {
    let mut found = Vec::new();
    scan(tokens, "", &mut found);
    found
}

/// Finds paths in `tokens`; `prefix` is what stands before the braces that hold them.
fn scan(tokens: TokenStream, prefix: &str, found: &mut Vec<PathUse>) {
    let mut path = String::new();
    let mut line = 0;
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ':' => {
                colons += 1;
                continue;
            }
            TokenTree::Punct(punct) if punct.as_char() == '*' && colons == 2 => {
                path.push_str("::*");
                finish(&mut path, prefix, line, found);
            }
            TokenTree::Ident(ident) => {
                if colons != 2 || path.is_empty() {
                    finish(&mut path, prefix, line, found);
                    line = ident.span().start().line;
                    path = ident.to_string();
                } else {
                    path.push_str("::");
                    path.push_str(&ident.to_string());
                }
            }
            TokenTree::Group(group) => {
                let in_path = group.delimiter() == Delimiter::Brace && colons == 2 && !path.is_empty();
                let inner = if in_path { join(prefix, &path) } else { String::new() };
                if in_path {
                    path.clear();
                }
                finish(&mut path, prefix, line, found);
                scan(group.stream(), &inner, found);
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => finish(&mut path, prefix, line, found),
        }
        colons = 0;
    }
    finish(&mut path, prefix, line, found);
}

fn finish(path: &mut String, prefix: &str, line: usize, found: &mut Vec<PathUse>) {
    let whole = join(prefix, path);
    if !path.is_empty() && whole.contains("::") {
        found.push(PathUse { path: whole, line });
    }
    path.clear();
}

fn join(prefix: &str, path: &str) -> String {
    if prefix.is_empty() { path.to_owned() } else { format!("{prefix}::{path}") }
}
