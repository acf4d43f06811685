// An example of a page: data by a hook, its three other states (loading, empty, error) by one component.

import { Anchor, Text } from "@mantine/core";
import { Link } from "wouter";
import { usePrometheus } from "../../api/hooks";
import type { PrometheusAlert } from "../../api/types";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import { plural } from "../../lib/format";

export default function HomePage() {
  const alerts = usePrometheus<{ alerts: PrometheusAlert[] }>("alerts", { refresh: 10_000 });
  return (
    <Frame title="Home">
      <Loaded query={alerts}>
        {({ data }) => (
          <Text>
            {plural(data.alerts.filter((a) => a.state === "firing").length, "alert is", "alerts are")} firing.{" "}
            <Anchor component={Link} href="/alerts">
              See them
            </Anchor>
          </Text>
        )}
      </Loaded>
    </Frame>
  );
}
