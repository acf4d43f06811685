import { Text } from "@mantine/core";
import { Frame } from "../../app/Frame";

export default function QueryPage() {
  return (
    <Frame title="Query">
      <Text>Soon.</Text>
    </Frame>
  );
}
