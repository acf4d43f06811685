import { Anchor, List, Text } from "@mantine/core";
import { Link, useLocation } from "wouter";
import { Frame } from "../../app/Frame";
import { pages } from "../../app/pages";

export default function NotFoundPage() {
  const [path] = useLocation();
  return (
    <Frame title="There is no such page">
      <Text>
        Nothing is at <code>{path}</code>. What there is:
      </Text>
      <List mt="sm" spacing={2}>
        {pages.map((p) => (
          <List.Item key={p.path}>
            <Anchor component={Link} href={p.path}>
              {p.title}
            </Anchor>
          </List.Item>
        ))}
      </List>
    </Frame>
  );
}
