//! A Rust file, taken apart as far as the rules need it.

use std::ops::RangeInclusive;

use proc_macro2::TokenStream;
use quote::ToTokens as _;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItemFn, Item, ItemFn, ItemMod, Signature, TraitItemFn};

use super::paths::{self, PathUse};
use crate::shell::{Context as _, Done};

/// A file's parts, those under `#[cfg(test)]` left out.
pub(super) struct Source<'a> {
    pub(super) path: &'a str,
    /// Every path that the code names, `use` lines and macro arguments included.
    pub(super) paths: Vec<PathUse>,
    pub(super) functions: Vec<Function>,
    /// The names of types, traits and modules.
    pub(super) names: Vec<Name>,
    /// How many lines are not tests.
    pub(super) lines: usize,
}

/// A function with a body.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) lines: usize,
    pub(super) parameters: usize,
}

/// A declared name.
pub(super) struct Name {
    pub(super) name: String,
    pub(super) line: usize,
}

impl<'a> Source<'a> {
    pub(super) fn parse(path: &'a str, text: &str) -> Done<Self> {
        let file = syn::parse_file(text).context(format!("{path} is not Rust"))?;
        let mut source = Self { path, paths: Vec::new(), functions: Vec::new(), names: Vec::new(), lines: 0 };
        let total = text.lines().count();
        if is_test_file(path) || file.attrs.iter().any(is_cfg_test) {
            return Ok(source);
        }
        let mut parts = Parts { tests: Vec::new(), source: &mut source };
        parts.visit_file(&file);
        let tests: usize = parts.tests.iter().map(|lines| lines.end() - lines.start() + 1).sum();
        source.lines = total - tests;
        source.paths = code_paths(&file.items);
        Ok(source)
    }
}

/// A file that holds only tests, by where it is.
fn is_test_file(path: &str) -> bool {
    let inside = |folder: &str| path.starts_with(folder) || path.contains(&format!("/{folder}"));
    path.ends_with("/tests.rs") || (inside("tests/") && !path.starts_with("tests/src/"))
}

fn is_cfg_test(attribute: &Attribute) -> bool {
    let tokens = attribute.to_token_stream().to_string();
    tokens.replace(' ', "").contains("[cfg(test)]")
}

/// The paths in `items`, tests left out.
fn code_paths(items: &[Item]) -> Vec<PathUse> {
    let mut found = Vec::new();
    for item in items.iter().filter(|item| !is_test(item)) {
        if let Item::Mod(ItemMod { content: Some((_, inner)), .. }) = item {
            found.extend(code_paths(inner));
        } else {
            found.extend(paths::in_tokens(item.to_token_stream()));
        }
    }
    found
}

fn is_test(item: &Item) -> bool {
    attributes(item).iter().any(is_cfg_test)
}

fn attributes(item: &Item) -> Vec<Attribute> {
    // Every kind of item begins with its attributes; parsing them off spares a match over all the kinds.
    let parse = |input: syn::parse::ParseStream<'_>| {
        let attributes = Attribute::parse_outer(input)?;
        input.parse::<TokenStream>()?;
        Ok(attributes)
    };
    syn::parse::Parser::parse2(parse, item.to_token_stream()).unwrap_or_default()
}

struct Parts<'s, 'a> {
    tests: Vec<RangeInclusive<usize>>,
    source: &'s mut Source<'a>,
}

impl Parts<'_, '_> {
    fn function(&mut self, signature: &Signature, end: usize) {
        let line = signature.span().start().line;
        let parameters = signature.inputs.iter().filter(|input| matches!(input, syn::FnArg::Typed(_))).count();
        let name = signature.ident.to_string();
        self.source.functions.push(Function { name, line, lines: end - line + 1, parameters });
    }

    fn name(&mut self, ident: &syn::Ident) {
        self.source.names.push(Name { name: ident.to_string(), line: ident.span().start().line });
    }
}

impl<'ast> Visit<'ast> for Parts<'_, '_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_test(item) {
            self.tests.push(item.span().start().line..=item.span().end().line);
            return;
        }
        visit::visit_item(self, item);
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.function(&function.sig, function.block.span().end().line);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.function(&function.sig, function.block.span().end().line);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(block) = &function.default {
            self.function(&function.sig, block.span().end().line);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.name(&module.ident);
        visit::visit_item_mod(self, module);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.name(&item.ident);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.name(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.name(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.name(&item.ident);
        visit::visit_item_type(self, item);
    }
}
