package android.provider;

public final class DocumentsContract {
    public static final class Document {
        public static final String COLUMN_DOCUMENT_ID = "document_id";
        public static final String COLUMN_DISPLAY_NAME = "_display_name";
    }
    public static String getTreeDocumentId(android.net.Uri tree) { throw new RuntimeException(); }
    public static android.net.Uri buildDocumentUriUsingTree(android.net.Uri tree, String document) { throw new RuntimeException(); }
    public static android.net.Uri buildChildDocumentsUriUsingTree(android.net.Uri tree, String document) { throw new RuntimeException(); }
}
