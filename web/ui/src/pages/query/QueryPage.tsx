import { Button, Menu, Select } from "@mantine/core";
import { IconAdjustments, IconPlus } from "@tabler/icons-react";
import { useEffect, useMemo, useState } from "react";
import { useLocation, useSearch } from "wouter";
import { Frame } from "../../app/Frame";
import { type Settings, useSettings } from "../../lib/settings";
import { useParam } from "../../lib/urlstate";
import { forget } from "./history";
import { emptyPanel, formatPanels, type PanelState, parsePanels } from "./model";
import { Panel } from "./Panel";

const refreshes = [
  { value: "0", label: "No refresh" },
  { value: "5", label: "Every 5s" },
  { value: "15", label: "Every 15s" },
  { value: "60", label: "Every 1m" },
];

const choices: [keyof Settings, string][] = [
  ["autocomplete", "Completion"],
  ["highlight", "Syntax colours"],
  ["linter", "Check while typing"],
  ["history", "Remember queries in this browser"],
  ["warnings", "Show warnings"],
  ["infos", "Show notices"],
];

export default function QueryPage() {
  const search = useSearch();
  const [, navigate] = useLocation();
  const panels = useMemo(() => parsePanels(search), [search]);
  const [asked, setRefresh] = useParam("refresh", "0");
  const refresh = refreshes.some((r) => r.value === asked) ? asked : "0";
  const [tick, setTick] = useState(0);
  const { settings, set } = useSettings();

  useEffect(() => {
    const s = Number(refresh);
    if (s === 0) return;
    const t = setInterval(() => {
      if (!document.hidden) setTick((n) => n + 1);
    }, s * 1000);
    return () => clearInterval(t);
  }, [refresh]);

  const write = (next: PanelState[]) => navigate(`/query?${formatPanels(next)}${refresh === "0" ? "" : `&refresh=${refresh}`}`);
  const change = (i: number, part: Partial<PanelState>) => write(panels.map((p, n) => (n === i ? { ...p, ...part } : p)));

  return (
    <Frame
      title="Query"
      actions={
        <>
          <Select
            size="xs"
            w={120}
            data={refreshes}
            value={refresh}
            onChange={(v) => setRefresh(v ?? "0")}
            allowDeselect={false}
            aria-label="Ask again by itself"
          />
          <Menu position="bottom-end" closeOnItemClick={false} width={260}>
            <Menu.Target>
              <Button size="xs" variant="default" leftSection={<IconAdjustments size={15} aria-hidden />}>
                Editor
              </Button>
            </Menu.Target>
            <Menu.Dropdown>
              {choices.map(([key, label]) => (
                <Menu.CheckboxItem key={key} checked={settings[key]} onChange={(on) => set({ [key]: on })}>
                  {label}
                </Menu.CheckboxItem>
              ))}
              <Menu.Divider />
              <Menu.Item onClick={forget}>Forget the remembered queries</Menu.Item>
            </Menu.Dropdown>
          </Menu>
        </>
      }
    >
      {panels.map((p, i) => (
        <Panel
          key={i}
          state={p}
          number={i + 1}
          tick={tick}
          autoFocus={i === 0 && p.expr === ""}
          onChange={(part) => change(i, part)}
          onDuplicate={() => write([...panels.slice(0, i + 1), p, ...panels.slice(i + 1)])}
          onRemove={panels.length > 1 ? () => write(panels.filter((_, n) => n !== i)) : undefined}
        />
      ))}
      <Button
        size="xs"
        variant="default"
        leftSection={<IconPlus size={15} aria-hidden />}
        onClick={() => write([...panels, { ...emptyPanel, range: panels.at(-1)?.range ?? emptyPanel.range }])}
      >
        Add a panel
      </Button>
    </Frame>
  );
}
