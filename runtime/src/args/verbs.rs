//! Verbs whose options are set up only when they are typed: clap's derive sets up those of all verbs
//! for each call, which is most of what a short call does.

/// Declares the enum of verbs: for each its help, its arguments, and its name.
macro_rules! verbs {
    ($(#[doc = $about:literal] $verb:ident($args:ty) = $name:literal,)*) => {
        #[derive(Debug)]
        pub enum Command {
            $(#[doc = $about] $verb($args),)*
        }

        impl clap::Subcommand for Command {
            fn augment_subcommands(all: clap::Command) -> clap::Command {
                let all = all.subcommand_required(true).arg_required_else_help(true);
                $(
                    // Its arguments' own description would take the place of its help.
                    let verb = clap::Command::new($name).about($about.trim()).defer(|verb| {
                        <$args as clap::Args>::augment_args(verb).about($about.trim())
                    });
                    let all = all.subcommand(verb);
                )*
                all
            }

            fn augment_subcommands_for_update(all: clap::Command) -> clap::Command {
                Self::augment_subcommands(all)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),*].contains(&name)
            }
        }

        impl clap::FromArgMatches for Command {
            fn from_arg_matches(typed: &clap::ArgMatches) -> Result<Self, clap::Error> {
                match typed.subcommand() {
                    $(Some(($name, typed)) => {
                        Ok(Self::$verb(<$args as clap::FromArgMatches>::from_arg_matches(typed)?))
                    })*
                    _ => Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(
                &mut self,
                typed: &clap::ArgMatches,
            ) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(typed)?;
                Ok(())
            }
        }
    };
}

pub(super) use verbs;
