use super::*;
use clap::CommandFactory;
use clap::error::ErrorKind;

fn parse(line: &str) -> Result<Args, clap::Error> {
    Args::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_well_formed() {
    Args::command().debug_assert();
}

#[test]
fn help_documents_the_exit_codes() {
    let help = Args::command().render_long_help().to_string();
    for line in EXIT_CODES.lines() {
        assert!(help.contains(line.trim()), "{line}\n{help}");
    }
}

#[test]
fn every_command_reads() {
    for line in [
        "cairn plan -f definitions",
        "cairn apply -f a.yaml -f b.yaml --project rides",
        "cairn definitions --output json",
        "cairn ingest driver_stats rows.parquet --producer etl --batch-rows 1000 --event-timestamp at",
        "cairn delete driver_stats gone.csv --producer gdpr-7",
        "cairn dataset create may eta spine.csv -o may.parquet --statuses --known-as-of 2013-06-01T00:00:00Z --author ada",
        "cairn dataset rebuild may -o again.parquet",
        "cairn backfill driver_stats --from 2013-01-01T00:00:00Z --to 2014-01-01T00:00:00Z --chunk 1d --detach",
        "cairn jobs",
        "cairn jobs pause 7 --output json",
        "cairn sql SELECT@1",
        "cairn sql -f query.sql -o out.parquet",
        "cairn dataset list",
        "cairn dataset show may --output json",
        "cairn get eta --entity driver_id=1001,1002 --as-of 2013-06-01T00:00:00Z --statuses --level linearizable",
        "cairn get driver_stats:rating --entity carrier=UA --entity origin=EWR --known-as-of 1356998400000000",
        "cairn join eta spine.csv -o out.parquet --statuses",
        "cairn predict delay --entity flight=1",
        "cairn predict --model delay@2 --entity flight=1 --features",
        "cairn model register delay delay.onnx --service delay --metric auc=0.71 --metric loss=0.2 --tag team=x",
        "cairn model list",
        "cairn model show delay:champion",
        "cairn model promote delay 2 --alias champion --expect 1 --reason better",
        "cairn model promote delay 1 --alias champion --expect none",
        "cairn model history delay",
        "cairn model download delay@1 -o out.onnx",
        "cairn lineage model_version:default/delay@1 --down --depth 3",
        "cairn --node 10.0.0.1:7700,10.0.0.2:7700 status --timeout 5",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn no_argument_of_a_command_takes_the_place_of_a_global_one() {
    let global: Vec<_> = Args::command().get_arguments().map(|arg| arg.get_id().clone()).collect();
    let mut todo: Vec<_> = Args::command().get_subcommands().cloned().collect();
    while let Some(command) = todo.pop() {
        for arg in command.get_arguments() {
            assert!(!global.contains(arg.get_id()), "`{}` of `{}`", arg.get_id(), command.get_name());
        }
        todo.extend(command.get_subcommands().cloned());
    }
    let args = parse("cairn lineage model_version:default/delay@1").unwrap();
    assert_eq!(args.global.node, cairn_client::DEFAULT_NODE);
}

#[test]
fn bad_arguments_are_refused_before_anything_is_sent() {
    for (line, kind) in [
        ("cairn", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("cairn plan", ErrorKind::MissingRequiredArgument),
        ("cairn get eta", ErrorKind::MissingRequiredArgument),
        ("cairn get eta --entity driver_id", ErrorKind::ValueValidation),
        ("cairn get eta --entity =1", ErrorKind::ValueValidation),
        ("cairn get eta --entity a=1 --as-of yesterday", ErrorKind::ValueValidation),
        ("cairn get eta --entity a=1 --level newest", ErrorKind::InvalidValue),
        ("cairn ingest v rows.csv --batch-rows 0", ErrorKind::ValueValidation),
        ("cairn ingest v rows.csv --batch-rows 65537", ErrorKind::ValueValidation),
        ("cairn predict --entity a=1", ErrorKind::MissingRequiredArgument),
        ("cairn predict d --model m@1 --entity a=1", ErrorKind::ArgumentConflict),
        ("cairn model register m f.onnx --metric auc=high", ErrorKind::ValueValidation),
        ("cairn model register m f.onnx --metric auc=nan", ErrorKind::ValueValidation),
        ("cairn model show m@0", ErrorKind::ValueValidation),
        ("cairn model show @1", ErrorKind::ValueValidation),
        ("cairn model show m:", ErrorKind::ValueValidation),
        ("cairn model promote m 0 --alias champion", ErrorKind::ValueValidation),
        ("cairn model promote m 1 --alias champion --expect champion", ErrorKind::ValueValidation),
        ("cairn lineage n --up --down", ErrorKind::ArgumentConflict),
    ] {
        assert_eq!(parse(line).unwrap_err().kind(), kind, "{line}");
    }
}

#[test]
fn entity_values_split_at_commas_unless_escaped() {
    let values = |text: &str| entity(text).unwrap().values;
    assert_eq!(values("k=1001,1002"), ["1001", "1002"]);
    assert_eq!(values(r"k=a\,b,c"), ["a,b", "c"]);
    assert_eq!(values(r"k=a\b"), [r"a\b"]);
    assert_eq!(values("k="), [""]);
    assert_eq!(values("k=x=y"), ["x=y"]);
}

#[test]
fn models_are_named_with_version_or_alias() {
    let name = |text: &str| model_ref(text).unwrap();
    assert_eq!(name("delay"), ModelRef { name: "delay".into(), which: None });
    assert_eq!(name("delay@3"), ModelRef { name: "delay".into(), which: Some(VersionOf::Number(3)) });
    let champion = Some(VersionOf::Alias("champion".into()));
    assert_eq!(name("delay:champion"), ModelRef { name: "delay".into(), which: champion });
}
