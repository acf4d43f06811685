import { createSpotlight, Spotlight } from "@mantine/spotlight";
import "@mantine/spotlight/styles.css";
import { IconSearch } from "@tabler/icons-react";
import { useEffect } from "react";
import type { Command } from "./commands";

const [store, { open }] = createSpotlight();

/** Loaded when it is first asked for. It opens whenever opened changes. */
export default function Palette({ commands, opened }: { commands: Command[]; opened: number }) {
  // biome-ignore lint/correctness/useExhaustiveDependencies: opened is the signal to open.
  useEffect(() => open(), [opened]);
  const groups = [...new Set(commands.map((c) => c.group))];
  return (
    <Spotlight
      store={store}
      shortcut={null}
      actions={groups.map((group) => ({
        group,
        actions: commands
          .filter((c) => c.group === group)
          .map((c) => ({
            id: c.id,
            label: c.label,
            keywords: c.words,
            onClick: c.run,
            leftSection: <c.icon size={18} stroke={1.6} aria-hidden />,
          })),
      }))}
      nothingFound="Nothing goes by that name."
      overlayProps={{ blur: 0 }}
      scrollable
      maxHeight={420}
      searchProps={{
        leftSection: <IconSearch size={18} stroke={1.6} aria-hidden />,
        placeholder: "Go to a page, or do something",
        "aria-label": "Go to a page, or do something",
      }}
    />
  );
}
