//! What is tested.

mod changes;
mod ends;
mod failures;
mod install;
mod rows;
mod users;

/// A test.
pub struct Case {
    pub name: &'static str,
    pub body: fn(),
    /// It stops and starts parts of the cluster.
    pub control: bool,
}

/// Tests that leave the release alone come first; the last one takes it away.
pub const ALL: &[Case] = &[
    case(
        "rows::a_namespace_shows_both_ends_and_nothing_else",
        rows::both_ends,
    ),
    case("rows::a_table_for_people", rows::table),
    case("rows::selections", rows::selections),
    case(
        "rows::jobs_init_containers_and_host_networks",
        rows::kinds_of_pods,
    ),
    case("rows::the_past_and_the_present", rows::past_and_present),
    case("rows::status", rows::status),
    case(
        "changes::a_new_pod_is_followed_from_its_first_connection",
        changes::new_pod,
    ),
    case("changes::a_relabelled_pod_leaves", changes::relabelled),
    case(
        "changes::the_last_close_of_a_deleted_pod_is_named",
        changes::deleted,
    ),
    case(
        "users::the_role_of_the_chart_is_enough_and_needed",
        users::roles,
    ),
    case(
        "users::nothing_listens_on_the_network_of_pods",
        users::network,
    ),
    case(
        "users::agents_run_with_three_capabilities",
        users::privileges,
    ),
    case("failures::an_agent_that_is_deleted", failures::agent),
    controlled(
        "failures::an_api_server_that_stops_and_starts",
        failures::api_server,
    ),
    controlled("failures::a_kubelet_that_is_restarted", failures::kubelet),
    case("install::helm_tests_the_release", install::own_test),
    case("install::every_rule_of_the_agent_is_needed", install::rules),
    case("install::tls_through_the_api_server", install::tls),
    controlled(
        "install::pods_from_the_kubelet_have_the_same_names",
        install::kubelet_mode,
    ),
    controlled(
        "install::the_rule_of_kubelet_mode_is_needed",
        install::kubelet_rule,
    ),
    controlled(
        "install::upgrade_rollback_and_uninstall_leave_nothing",
        install::leaves_nothing,
    ),
];

const fn case(name: &'static str, body: fn()) -> Case {
    let control = false;
    Case {
        name,
        body,
        control,
    }
}

const fn controlled(name: &'static str, body: fn()) -> Case {
    let control = true;
    Case {
        name,
        body,
        control,
    }
}
