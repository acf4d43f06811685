import { Button } from "@mantine/core";
import { useClipboard } from "@mantine/hooks";
import { usePrometheus } from "../../api/hooks";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import css from "../pages.module.css";

export default function ConfigPage() {
  const config = usePrometheus<{ yaml: string }>("status/config");
  const clipboard = useClipboard();
  const yaml = config.data?.data.yaml;
  return (
    <Frame
      title="Configuration"
      actions={
        yaml !== undefined && (
          <Button size="xs" variant="default" onClick={() => clipboard.copy(yaml)}>
            {clipboard.copied ? "Copied" : "Copy"}
          </Button>
        )
      }
    >
      <Loaded query={config}>
        {({ data }) => (
          // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls sideways, and the keyboard must be able to do so
          <pre className={css.pre} tabIndex={0}>
            {data.yaml}
          </pre>
        )}
      </Loaded>
    </Frame>
  );
}
