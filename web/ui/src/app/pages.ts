// Every page: add one here and in routes.json, which the server reads.

import {
  IconAdjustments,
  IconBell,
  IconBellOff,
  IconCpu,
  IconDatabase,
  IconFileText,
  IconHome,
  IconListCheck,
  IconRadar2,
  IconSend,
  IconTarget,
  IconTerminal2,
  IconTopologyStar3,
} from "@tabler/icons-react";
import { type ComponentType, lazy } from "react";

export interface Page {
  path: string;
  title: string;
  /** Groups are shown in the order of their first page; "" has no heading. */
  group: string;
  icon: ComponentType<{ size?: number; stroke?: number; "aria-hidden"?: boolean }>;
  /** The key that leads there. */
  key?: string;
  /** Further words by which the palette finds it. */
  words?: string;
  component: ComponentType;
}

export const pages: Page[] = [
  {
    path: "/",
    title: "Home",
    group: "",
    icon: IconHome,
    key: "h",
    words: "overview health problems",
    component: lazy(() => import("../pages/home/HomePage")),
  },
  {
    path: "/query",
    title: "Query",
    group: "",
    icon: IconTerminal2,
    key: "q",
    words: "graph promql expression explore",
    component: lazy(() => import("../pages/query/QueryPage")),
  },
  {
    path: "/alerts",
    title: "Alerts",
    group: "",
    icon: IconBell,
    key: "a",
    words: "firing pending notifications",
    component: lazy(() => import("../pages/alerts/AlertsPage")),
  },
  {
    path: "/silences",
    title: "Silences",
    group: "",
    icon: IconBellOff,
    key: "s",
    words: "mute maintenance acknowledge",
    component: lazy(() => import("../pages/silences/SilencesPage")),
  },
  {
    path: "/targets",
    title: "Targets",
    group: "Monitoring",
    icon: IconTarget,
    key: "t",
    words: "scrape health jobs up down",
    component: lazy(() => import("../pages/targets/TargetsPage")),
  },
  {
    path: "/rules",
    title: "Rules",
    group: "Monitoring",
    icon: IconListCheck,
    key: "r",
    words: "recording alerting evaluation",
    component: lazy(() => import("../pages/rules/RulesPage")),
  },
  {
    path: "/service-discovery",
    title: "Service discovery",
    group: "Monitoring",
    icon: IconRadar2,
    key: "d",
    words: "labels relabel dropped",
    component: lazy(() => import("../pages/discovery/DiscoveryPage")),
  },
  {
    path: "/tsdb-status",
    title: "TSDB",
    group: "Monitoring",
    icon: IconDatabase,
    key: "b",
    words: "cardinality series head storage",
    component: lazy(() => import("../pages/status/TSDBPage")),
  },
  {
    path: "/cluster",
    title: "Cluster",
    group: "Monitoring",
    icon: IconTopologyStar3,
    key: "c",
    words: "replicas zones gaps healing mesh bucket",
    component: lazy(() => import("../pages/cluster/ClusterPage")),
  },
  {
    path: "/config",
    title: "Configuration",
    group: "Status",
    icon: IconFileText,
    words: "yaml reload",
    component: lazy(() => import("../pages/status/ConfigPage")),
  },
  {
    path: "/flags",
    title: "Flags",
    group: "Status",
    icon: IconAdjustments,
    words: "command line",
    component: lazy(() => import("../pages/status/FlagsPage")),
  },
  {
    path: "/status",
    title: "Runtime",
    group: "Status",
    icon: IconCpu,
    words: "build version memory uptime",
    component: lazy(() => import("../pages/status/RuntimePage")),
  },
  {
    path: "/alertmanager-discovery",
    title: "Alertmanagers",
    group: "Status",
    icon: IconSend,
    words: "alertmanager discovery outside",
    component: lazy(() => import("../pages/status/AlertmanagersPage")),
  },
];
