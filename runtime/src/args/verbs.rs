//! Verbs that clap is told of only as far as they are typed, and their options with them: to set up all of
//! them for each call would be most of what a short call does.

/// Declares the enum of verbs: for each its help, its arguments, and its name.
macro_rules! verbs {
    ($(#[doc = $about:literal] $verb:ident($args:ty) = $name:literal,)*) => {
        #[derive(Debug)]
        pub enum Command {
            $(#[doc = $about] $verb($args),)*
        }

        impl Command {
            /// Tells `all` of the verbs that are `wanted`.
            fn add_to(all: clap::Command, wanted: impl Fn(&str) -> bool) -> clap::Command {
                let mut all = all.subcommand_required(true).arg_required_else_help(true);
                $(if wanted($name) {
                    // Its arguments' own description would take the place of its help.
                    let verb = clap::Command::new($name).about($about.trim()).defer(|verb| {
                        <$args as clap::Args>::augment_args(verb).about($about.trim())
                    });
                    all = all.subcommand(verb);
                })*
                all
            }

            /// Takes the verb and its arguments out of what was typed.
            fn take(typed: &mut clap::ArgMatches) -> Result<Self, clap::Error> {
                let missing = || clap::Error::new(clap::error::ErrorKind::MissingSubcommand);
                let (name, mut typed) = typed.remove_subcommand().ok_or_else(missing)?;
                match name.as_str() {
                    $($name => {
                        let args = <$args as clap::FromArgMatches>::from_arg_matches_mut(&mut typed);
                        Ok(Self::$verb(args?))
                    })*
                    _ => Err(missing()),
                }
            }
        }
    };
}

pub(super) use verbs;
