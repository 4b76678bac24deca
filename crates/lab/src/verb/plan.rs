//! `lab-backup plan`

use clap::Args;

use crate::cli::LabFile;
use crate::exit::Exit;
use crate::forecast::{self, Assumptions, Forecast};
use crate::host::{Host, ThisHost};
use crate::inventory;
use crate::model::Model;

/// Shows what apply would change.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    file: LabFile,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What all jobs of a night write together, in MiB/s; the forecast rests on it
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = Assumptions::default().rate_mib_s,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    rate: u32,
}

impl Plan {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let outlook = super::outlook(&ThisHost, &self.file.lab)?;
        let forecast = self.forecast(&ThisHost, &outlook.model);
        if self.json {
            let mut json = outlook.plan.json();
            json["forecast"] = as_json(forecast)?;
            println!("{json:#}");
        } else {
            // Before the plan, whose last line is the number of changes.
            print!("{}", as_text(forecast));
            println!("{}", outlook.plan);
        }
        Ok(Exit::Done)
    }

    /// A forecast, or why there is none; nothing for a lab without VMs. A plan never fails by it.
    fn forecast(&self, host: &dyn Host, model: &Model) -> Option<Result<Forecast, String>> {
        if model.vms.is_empty() {
            return None;
        }
        let assumed = Assumptions {
            rate_mib_s: self.rate,
            ..Assumptions::default()
        };
        let forecast = inventory::read(host)
            .map(|inventory| forecast::forecast(model, &inventory, assumed))
            .map_err(|error| format!("{error:#}").replace(char::is_control, " "));
        Some(forecast)
    }
}

fn as_text(forecast: Option<Result<Forecast, String>>) -> String {
    match forecast {
        None => String::new(),
        Some(Ok(forecast)) => format!("{forecast}\n"),
        Some(Err(why)) => format!("no forecast: {why}\n"),
    }
}

fn as_json(forecast: Option<Result<Forecast, String>>) -> serde_json::Result<serde_json::Value> {
    match forecast {
        None => Ok(serde_json::Value::Null),
        Some(Ok(forecast)) => serde_json::to_value(forecast),
        Some(Err(why)) => Ok(serde_json::json!({ "unavailable": why })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::{disk, domain, inventory};
    use crate::model;

    const VM: &str =
        "version = 1\n[lab]\naddress = \"h\"\n[storage]\ndir = \"/srv/v\"\n[vms.a]\ntier = 0\n";

    #[test]
    fn a_forecast_is_text_before_the_plan_and_a_key_of_its_json() {
        let model = model::parse(VM).unwrap();
        let found = inventory(vec![domain("a", 1, vec![disk("vda", "disk", 100)])]);
        let forecast = forecast::forecast(&model, &found, Assumptions::default());
        let text = as_text(Some(Ok(forecast.clone())));
        assert!(text.starts_with("forecast, "), "{text}");
        assert!(text.ends_with("\n\n"), "{text:?}");
        let json = as_json(Some(Ok(forecast))).unwrap();
        assert_eq!(json["assumptions"]["rate_mib_s"], 200);
        assert_eq!(json["tiers"][0]["fulls"], 7);
    }

    #[test]
    fn why_there_is_none_is_one_line() {
        assert_eq!(as_text(None), "");
        assert!(as_json(None).unwrap().is_null());
        let why = || Some(Err("no libvirt".to_owned()));
        assert_eq!(as_text(why()), "no forecast: no libvirt\n");
        assert_eq!(as_json(why()).unwrap()["unavailable"], "no libvirt");
    }
}
