//! Who may do what through the Director.

use std::collections::BTreeMap;

use relay::name;

use super::check::Checker;
use crate::config;

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs backups and cancels jobs.
    Engineer,
    /// Also restores, and replaces VMs.
    Operator,
    /// Only looks.
    Monitor,
}

/// Every role with its name, which is also that of a console without limits on VMs.
pub(crate) const ROLES: [(&str, Role); 3] = [
    ("engineer", Role::Engineer),
    ("operator", Role::Operator),
    ("monitor", Role::Monitor),
];

/// Somebody with a console of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// What they may do.
    pub(crate) role: Role,
    /// Keys of the VMs that they see; `None` is all.
    pub(crate) vms: Option<Vec<String>>,
}

impl Checker<'_> {
    pub(super) fn users(
        &mut self,
        written: &BTreeMap<String, config::User>,
        vms: &BTreeMap<String, config::Vm>,
    ) -> BTreeMap<String, User> {
        let mut users = BTreeMap::new();
        for (name, user) in written {
            let key = format!("users.{name}");
            if let Err(error) = name::check(name) {
                self.bad(
                    &key,
                    &error.to_string().replace("VM key", "the name"),
                    "rename it",
                );
            } else if ROLES.iter().any(|(role, _)| role == name) {
                self.bad(
                    &key,
                    "is the name of a role",
                    "write the name of a person or program",
                );
            }
            let role = user.role.as_deref().unwrap_or("engineer");
            let role = ROLES
                .iter()
                .find(|(name, _)| *name == role)
                .map(|(_, role)| *role);
            if role.is_none() {
                let remedy = "write \"engineer\", \"operator\" or \"monitor\"";
                self.bad(&format!("{key}.role"), "is no role", remedy);
            }
            if user.vms.as_ref().is_some_and(Vec::is_empty) {
                self.bad(
                    &format!("{key}.vms"),
                    "is empty",
                    "name a VM, or leave it out for all",
                );
            }
            for vm in user
                .vms
                .iter()
                .flatten()
                .filter(|vm| !vms.contains_key(*vm))
            {
                let reason = format!("has {vm:?}, which is no VM of this file");
                self.bad(&format!("{key}.vms"), &reason, "correct or remove it");
            }
            let user = User {
                role: role.unwrap_or(Role::Monitor),
                vms: user.vms.clone(),
            };
            users.insert(name.clone(), user);
        }
        users
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::Role;

    #[test]
    fn a_user_is_an_engineer_for_all_vms_unless_told_otherwise() {
        let head =
            "version = 1\n[lab]\naddress = \"h\"\n[storage]\ndir = \"/v\"\n[vms.a]\ntier = 1\n";
        let parse = |text: &str| parse(&format!("{head}{text}"));
        let model = parse("[users.eve]\n[users.bob]\nrole = \"monitor\"\nvms = [\"a\"]\n").unwrap();
        assert_eq!(model.users["eve"].role, Role::Engineer);
        assert_eq!(
            model.users["bob"].vms.as_deref(),
            Some(&["a".to_owned()][..])
        );
        for (text, said) in [
            (
                "[users.operator]\n",
                "line 8: users.operator: is the name of a role",
            ),
            ("[users.\"a b\"]\n", "line 8: users.a b:"),
            ("[users.x]\nrole = \"root\"\n", "line 9: users.x.role:"),
            ("[users.x]\nvms = []\n", "line 9: users.x.vms: is empty"),
            (
                "[users.x]\nvms = [\"b\"]\n",
                "line 9: users.x.vms: has \"b\"",
            ),
        ] {
            let problems = parse(text).unwrap_err().to_string();
            assert!(problems.contains(said), "{problems}");
        }
    }
}
